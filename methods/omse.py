"""Least-squared-error calibration (OMSE)."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class OmseParameters:
    """Settings of `Omse`.

    Attributes:
        steps: number of candidate ranges.
        step: by how much of (min, max) each candidate is smaller than the one before.
        histogram: take the error of large activations from a histogram of 4096 bins.
    """

    steps: int = counted(90)
    step: float = bounded(0.01, more_than=0, less_than=1)
    histogram: bool = True


@register_method
class Omse(Method):
    """Of 90 ranges between (min, max) and a tenth of it, the one of least squared error.

    Source: Choukroun et al., ICCVW 2019 (arXiv 1902.06822); the grid is FQ-ViT's.
    Convention: the common table (weights per output channel, activations per tensor, affine, static).
    Deviation: the squared error of activations comes from a histogram unless ``histogram = false``.
    """

    name = "omse"
    paper = (
        "Choukroun et al., Low-bit Quantization of Neural Networks for Efficient Inference, 2019"
    )
    fidelity = "reimplementation"
    family = "calibration"
    quick = {"steps": 18, "step": 0.05}
    Parameters = OmseParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass."""
        grid = (self.parameters.steps, self.parameters.step)
        exact = parts.shrink_rule(*grid)
        parts.calibrate_weights(model, exact)
        rule = parts.histogram_shrink_rule(*grid) if self.parameters.histogram else exact
        parts.calibrate_activations(model, calibration, rule, progress=progress)
