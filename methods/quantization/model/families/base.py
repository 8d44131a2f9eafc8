"""The base of family adapters: replacing layers, and noting the structure of what was replaced."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantConv2d,
    QuantLayerNorm,
    QuantLinear,
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.model.structure import (
    NormLink,
    Padding,
    Segment,
    SegmentKind,
    Structure,
    as_it_is,
)


class Family(ABC):
    """Replaces the layers of one model by quantized ones, in place.

    Subclass it and decorate with `register_family`.

    Attributes:
        name: short name of the family, lower-case kebab.
        description: what is supported, for error messages.
    """

    name: ClassVar[str]
    description: ClassVar[str]

    def __init__(self, model: nn.Module, table: BitTable) -> None:
        # Any: the concrete classes have attributes that nn.Module does not declare.
        self.model: Any = model
        self.table = table
        self.structure = Structure()

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether the model belongs to this family."""

    def wrap(self) -> Structure:
        """Replace the layers and return what was found.

        Raises:
            MethodError: the model is a variant that the adapter does not know, or has a layer that no role
                is known for.
        """
        self.replace_layers()
        self._refuse_leftovers()
        return self.structure

    @abstractmethod
    def replace_layers(self) -> None:
        """Walk the model in execution order and replace each layer."""

    def replace(self, parent: nn.Module, child: str, name: str, role: str) -> WeightedOperation:
        """Put a quantized layer in the place of ``parent.child`` and return it.

        Args:
            parent: the module that holds the layer.
            child: the layer's name in it.
            name: the layer's dotted name in the model.
            role: its place in the network, one of the bit table's.
        """
        layer = getattr(parent, child)
        if isinstance(layer, nn.Linear):
            operation: WeightedOperation = QuantLinear(layer, name, role, self.table)
        elif isinstance(layer, nn.Conv2d):
            operation = QuantConv2d(layer, name, role, self.table)
        else:
            raise self.refusal(
                f"{name} is a {type(layer).__name__}, not a linear layer or convolution"
            )
        setattr(parent, child, operation)
        self.structure.operations.append(operation)
        return operation

    def quantize_norm(self, parent: nn.Module, child: str, name: str) -> None:
        """Give the LayerNorm ``parent.child``, if there is one, a quantizer if the table asks for it."""
        norm = getattr(parent, child, None)
        if isinstance(norm, nn.LayerNorm) and "norm.input" in self.table:
            operation = QuantLayerNorm(norm, name, self.table)
            setattr(parent, child, operation)
            self.structure.operations.append(operation)

    def link(
        self, norm: nn.Module, reader: WeightedOperation, padding: Padding | None = None
    ) -> None:
        """Note that ``reader`` alone reads the output of ``norm``, if that is a LayerNorm with a weight.

        One without a bias gets a zero one: a shift that is folded into it has to go somewhere.
        """
        if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine:
            if norm.bias is None:
                norm.bias = nn.Parameter(torch.zeros_like(norm.weight), requires_grad=False)
            self.structure.norm_links.append(NormLink(norm, reader, padding))

    def segment(
        self,
        name: str,
        kind: SegmentKind,
        run: Callable[[Tensor], Tensor],
        stage: int = 0,
        halves: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
        tap: Callable[[Tensor], Tensor] | None = None,
        arrange: Callable[[Tensor], Tensor] = as_it_is,
    ) -> None:
        """Note the segment that holds the operations replaced since the last one.

        ``halves`` are the attention and the MLP of a block, each with its residual; ``tap`` is what a
        detector's neck reads of it; ``arrange`` takes the stream to the layout of the attention half.
        """
        taken = sum(len(segment.operations) for segment in self.structure.segments)
        operations = tuple(self.structure.operations[taken:])
        parts: tuple[Segment, ...] = ()
        if halves is not None:
            border = next(i for i, op in enumerate(operations) if op.role == "fc1")
            if operations[border - 1].role == "norm" and not self._norms_behind(operations):
                border -= 1
            attention = Segment(
                f"{name}.attn", kind, halves[0], operations[:border], stage, arrange=arrange
            )
            mlp = Segment(f"{name}.mlp", kind, halves[1], operations[border:], stage, tap=tap)
            parts = attention, mlp
        self.structure.segments.append(Segment(name, kind, run, operations, stage, parts, tap))

    def _norms_behind(self, operations: tuple[QuantOperation, ...]) -> bool:
        """Whether norms of a block stand behind attention and MLP, not before them."""
        return not all(self.structure.writes(operation) for operation in operations)

    def require(self, module: nn.Module, kind: type[nn.Module], name: str) -> None:
        """Refuse the model unless ``module`` is exactly a ``kind``."""
        if type(module) is not kind:
            raise self.refusal(f"{name} is a {type(module).__name__}, expected {kind.__name__}")

    def refusal(self, why: str) -> MethodError:
        """Return the error for a variant that this adapter does not know."""
        return MethodError(
            f"cannot quantize this {type(self.model).__name__}: {why}. Supported: {self.description}"
        )

    def quantized_part(self) -> Iterable[tuple[str, nn.Module]]:
        """Return names and modules of all that must be quantized: the whole model."""
        modules: Iterable[tuple[str, nn.Module]] = self.model.named_modules()
        return modules

    def _refuse_leftovers(self) -> None:
        """A layer that nobody replaced would stay in floating point without a word."""
        kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
        left = [name for name, module in self.quantized_part() if isinstance(module, kinds)]
        if left:
            raise self.refusal(f"no role is known for {', '.join(left[:4])}")
