"""Stabilized activation scales: ranges that folds of the calibration images agree on."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class StableScalesParameters:
    """Settings of `StableScales`; those of the ranges are OMSE's.

    Attributes:
        folds: parts of the calibration images that find a range each; 1: OMSE.
        steps: number of candidate ranges.
        step: by how much of (min, max) each candidate is smaller than the one before.
    """

    folds: int = counted(8)
    steps: int = counted(90)
    step: float = bounded(0.01, more_than=0, less_than=1)


@register_method
class StableScales(Method):
    """Activation ranges of least squared error, found on folds of the images and joined robustly.

    Source: "Stabilized activation scale estimation for precise post-training quantization", Neurocomputing
    2023, from its title: scales that are estimated from few images vary between draws. The estimator is this
    project's (`StableRule`): the geometric median of the folds' ranges, shrunk towards the range of all
    images. How far the ranges of folds lie apart is logged for each site.
    Convention: the common table (weights per output channel, activations per tensor, affine, static).
    Deviation: weights, and activations on all images, take OMSE's range.
    """

    name = "stable-scales"
    paper = "Stabilized activation scale estimation for precise PTQ, Neurocomputing 2023"
    fidelity = "inspired"
    family = "calibration"
    note = "this project's estimator, after the paper's title"
    quick = {"folds": 3, "steps": 18, "step": 0.05}
    Parameters = StableScalesParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass."""
        p = self.parameters
        parts.calibrate_weights(model, parts.shrink_rule(p.steps, p.step))
        rule = parts.StableRule(p.folds, parts.histogram_shrink_rule(p.steps, p.step))
        parts.calibrate_activations(model, calibration, rule, progress=progress)
