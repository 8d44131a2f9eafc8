"""How far each layer's output is off in the quantized network, at every width: HMPTQ's measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.allocation.sensitivity import IMAGES, Errors, in_place
from vit_ptq_bench.methods.quantization.allocation.sites import counts
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import sites_of
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer

Grids = Mapping[int, Mapping[str, Quantizer]]
"""Bits -> site name -> quantizer, from `grids_at`."""


@torch.no_grad()
def reconstruction_errors(
    model: QuantizedModel, calibration: Calibration, grids: Grids, current: Mapping[str, int]
) -> Errors:
    """Return ``|y_b - y|^2 / |y|^2`` of each layer's output, what comes before being quantized.

    ``y`` is the full-precision output; ``y_b`` that of the layer with one of its sites, input or weight, at b
    bits, the other at its present ones, on the input that the quantized layers before it give. So what one
    layer does to those behind it is part of what they are measured by, without looking at pairs.

    Args:
        model: the wrapped model; its quantizers are inactive afterwards, and their ranges as they were.
        calibration: the images, of which the first `IMAGES` are looked at.
        grids: quantizers for every width.
        current: present bits of each site in ``grids``.

    Returns:
        Of the quantized weights and inputs of all layers in the model's segments (not of a detector's neck
        and heads, whose inputs are not those of the same proposals).
    """
    images = calibration.first(IMAGES).whole()
    layers = [op for segment in model.structure.segments for op in segment.operations]
    layers = [op for op in layers if isinstance(op, WeightedOperation)]
    exact: dict[str, Tensor] = {}
    model.activate(weights=False, activations=False)
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(_keeping(exact)).remove)
        model(images)
    errors: Errors = {}
    present = {name: grids[bits][name] for name, bits in current.items()}
    with in_place(model.operations, present), ExitStack() as stack:
        model.activate()
        for layer in layers:
            watch(stack, layer, _Measure(exact, grids, errors))
        model(images)
    model.activate(weights=False, activations=False)
    return errors


def _keeping(kept: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, WeightedOperation)
        kept[module.name] = output

    return hook


class _Measure:
    """Forward pre-hook of a layer: its errors on the input that arrives."""

    def __init__(self, exact: Mapping[str, Tensor], grids: Grids, errors: Errors) -> None:
        self._exact, self._grids, self._errors = exact, grids, errors

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, WeightedOperation)
        x, y = inputs[0], self._exact[module.name]
        present = {
            "input": module.input_quantizer(x),
            "weight": module.weight_quantizer(module.weight),
        }
        for site in sites_of([module]):
            if not counts(site):
                continue
            kind, tensor = ("weight", module.weight) if site.is_weight else ("input", x)
            for bits, quantizers in self._grids.items():
                rounded = quantizers[site.name].fake_quantize(tensor)
                operands = present | {kind: rounded}
                error = module.compute(operands["input"], operands["weight"]).sub_(y)
                lost = float(error.square().sum() / y.square().sum().clamp_min(1e-30))
                self._errors.setdefault(site.name, {})[bits] = lost
