"""The wrapped copy of a model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.model.structure import Site, Structure, sites_of


class QuantizedModel(nn.Module):
    """A wrapped copy of a model; called like the original.

    Attributes:
        module: the copy, its linear layers, convolutions and attention products replaced.
        table: the bit table its quantizers were built from.
        structure: operations, LayerNorm links and blocks.
    """

    def __init__(self, module: nn.Module, table: BitTable, structure: Structure) -> None:
        super().__init__()
        self.module = module
        self.table = table
        self.structure = structure

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Call the wrapped model; with images alone a detector gives feature maps (`Structure.observe`)."""
        if self.structure.observe is not None and len(inputs) == 1 and not keywords:
            return self.structure.observe(inputs[0])
        return self.module(*inputs, **keywords)

    @property
    def operations(self) -> list[QuantOperation]:
        """The quantized operations in execution order."""
        return self.structure.operations

    def sites(self) -> Iterator[Site]:
        """Yield every site, in execution order, the first operand before the second."""
        yield from sites_of(self.operations)

    def activate(self, weights: bool = True, activations: bool = True) -> None:
        """Switch quantizers on or off by kind; with both off the model is the original."""
        for site in self.sites():
            site.quantizer.active = weights if site.is_weight else activations

    def freeze(self) -> None:
        """Switch every quantizer on and quantize the weights, once and for all.

        Raises:
            MethodError: a quantizer has not been calibrated, or has parameters that are none (NaN, zero,
                negative), or a weight, bias or buffer is not finite; it is named.
        """
        pending = [site.name for site in self.sites() if not site.quantizer.initialised]
        if pending:
            raise MethodError(
                f"calibration left {len(pending)} sites without scales: {pending[:5]}"
            )
        self._require_sound()
        self.activate()
        for operation in self.operations:
            if isinstance(operation, WeightedOperation):
                operation.freeze()
        self.settle()
        self.requires_grad_(False)

    def settle(self) -> None:
        """Let every quantizer look at its parameters for the last time: `torch.export` works from then on."""
        for site in self.sites():
            site.quantizer.settle()

    def _require_sound(self) -> None:
        """What is not finite here would be a figure all the same, and a wrong one."""
        problems = [(site.name, site.quantizer.problem()) for site in self.sites()]
        wrong = [f"{name} has {problem}" for name, problem in problems if problem is not None]
        if wrong:
            more = f" (and {len(wrong) - 3} more sites)" if len(wrong) > 3 else ""
            raise MethodError(f"{'; '.join(wrong[:3])}{more}")
        broken = [name for name, tensor in self.state_tensors().items() if not _is_finite(tensor)]
        if broken:
            raise MethodError(f"{len(broken)} tensors hold NaN or infinite values: {broken[:3]}")

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.module.parameters()).device

    def weighted_operations(self) -> list[WeightedOperation]:
        """Return the operations that have a weight."""
        return [op for op in self.operations if isinstance(op, WeightedOperation)]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return every parameter and persistent buffer by name (detached)."""
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
