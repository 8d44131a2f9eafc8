"""A pass over the model in which each layer's weight can be set by what arrives at the layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel


@torch.no_grad()
def visit_layers(
    model: QuantizedModel,
    calibration: Calibration,
    layers: Sequence[WeightedOperation],
    visit: Callable[[WeightedOperation, Tensor], None],
    *,
    behind: bool = False,
    progress: CalibrationProgress | None = None,
) -> None:
    """Hand each layer and its unquantized input to ``visit``, once, in one forward pass.

    Args:
        model: the wrapped model; quantizers that are active stay so.
        calibration: the images, shown as one batch.
        layers: those to visit.
        visit: called with a layer and its input ([..., C_in] or [B, C_in, H, W]); may change its weight.
        behind: visit a layer once it has given its output, so that later layers see nothing of what is done
            to it; otherwise they see it.
        progress: called after each layer.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    done: set[str] = set()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object = None) -> None:
        assert isinstance(module, WeightedOperation)
        if module.name in done:  # a dense head looks at several levels, the finest first
            return
        check_finite(inputs[0], f"{module.name}.input")
        visit(module, inputs[0])
        done.add(module.name)
        if progress is not None:
            progress(len(done), len(layers))

    with ExitStack() as stack:
        for layer in layers:
            register = layer.register_forward_hook if behind else layer.register_forward_pre_hook
            stack.callback(register(hook).remove)
        model(calibration.whole())
