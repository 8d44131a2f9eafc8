"""SmoothQuant: move the difficulty of activations into the weights."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class SmoothQuantParameters:
    """Settings of `SmoothQuant`.

    Attributes:
        alpha: migration strength in [0, 1]; 0 leaves the activations as they are, 1 makes all their
            channels equally large.
    """

    alpha: float = bounded(0.5, at_least=0, at_most=1)


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
    family = "transformation"
    Parameters = SmoothQuantParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """One pass for the channels' maxima, fold, one pass for the ranges."""
        parts.smooth_norm_outputs(model, calibration, self.parameters.alpha)
        parts.calibrate_weights(model, parts.minmax_rule)
        parts.calibrate_activations(model, calibration, parts.minmax_rule, progress=progress)
