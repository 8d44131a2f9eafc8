"""SmoothQuant: move the difficulty of activations into the weights."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
    check_finite,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import NormLink

SMALLEST = 1e-5
"""Lower bound of maxima and of smoothing scales."""


@dataclass(frozen=True)
class SmoothQuantParameters:
    """Settings of `SmoothQuant`.

    Attributes:
        alpha: migration strength in [0, 1]; 0 leaves the activations as they are, 1 makes all their
            channels equally large.
    """

    alpha: float = 0.5


@register_method
class SmoothQuant(Method):
    """Divide each LayerNorm output channel by s_j and multiply the weight's column by it.

    ``s_j = max|X_j|^alpha / max|W_:j|^(1 - alpha)`` (equation 4), folded into LayerNorm and weight, then
    min-max ranges. Source: Xiao et al., ICML 2023 (arXiv 2211.10438), written for language models at W8A8.
    Convention: the common table (weights per output channel, activations per tensor, affine, static).
    Deviations: LayerNorm -> qkv, fc1 and (Swin) reduction only; per-channel weights, where the paper has one
    scale per weight.
    """

    name = "smoothquant"
    paper = "Xiao et al., SmoothQuant: Accurate and Efficient PTQ for LLMs, ICML 2023"
    fidelity = "reimplementation"
    Parameters = SmoothQuantParameters

    def calibrate(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        progress: CalibrationProgress | None = None,
    ) -> None:
        """One pass for the channels' maxima, fold, one pass for the ranges."""
        for link, largest in _channel_maxima(model, calibration):
            if not link.reader.input_quantizer.spec.is_float:
                self._smooth(link, largest)
        calibrate_weights(model, minmax_rule)
        calibrate_activations(model, calibration, minmax_rule, progress=progress)

    def _smooth(self, link: NormLink, largest: Tensor) -> None:
        weight = link.reader.weight.abs().amax(dim=0).clamp_min(SMALLEST)
        check_finite(weight, f"{link.reader.name}.weight")
        alpha = self.parameters.alpha
        scale = largest.clamp_min(SMALLEST) ** alpha / weight ** (1 - alpha)
        fold_into_reader(link, scale.clamp_min(SMALLEST), torch.zeros_like(scale))


@torch.no_grad()
def _channel_maxima(
    model: QuantizedModel, calibration: Calibration
) -> list[tuple[NormLink, Tensor]]:
    """Largest absolute value of each channel of each linked LayerNorm's output ([C])."""
    maxima: dict[str, Tensor] = {}

    def watch(link: NormLink, module: Any, inputs: tuple[Tensor, ...]) -> None:
        check_finite(inputs[0], f"{link.reader.name}.input")
        maxima[link.reader.name] = inputs[0].abs().flatten(0, -2).amax(dim=0)

    links = model.structure.norm_links
    patch_embed = model.weighted_operations()[0]
    check_finite(calibration.whole(), f"{patch_embed.name}.input")
    with ExitStack() as stack:
        for link in links:
            hook = partial(watch, link)
            stack.callback(link.reader.register_forward_pre_hook(hook).remove)
        model(calibration.whole())
    return [(link, maxima[link.reader.name]) for link in links]
