"""GLF-Q: reconstruction on the penultimate feature, with ReLU in the place of GELU."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.reconstruction import RELU_PAPER, ReluFrontier, ReluParameters
from vit_ptq_bench.methods.api.registry import register_method

ROTATIONS = ("rotate-heads", "rotate-residual")

FLOOR = 1e-12
"""Of the first values that losses are divided by (the paper's)."""


@dataclass(frozen=True)
class GlfParameters(ReluParameters):
    """Settings of `GlfQ`.

    Attributes:
        local_weight: of the unit's own output beside the feature's 1.
        rotate: rotate heads and residual streams first, where the model has what that takes.
        global_every: the feature, by far the dearer loss, counts in every so-manieth iteration only, with so
            many times its weight.
    """

    local_weight: float = bounded(2.0, at_least=0)
    rotate: bool = True
    global_every: int = counted(1)


@register_method
class GlfQ(ReluFrontier):
    """Blocks trained on the error of the penultimate feature through the full-precision rest, and their own.

    Source: Sun, Liang, Tong, Wu, 2026; from the paper's text, no code could be had. Heads and residual
    streams are rotated first, GELU is replaced by ReLU and each MLP fitted to its old output. Loss: mean
    squared error of what enters the classifier plus twice that of the unit's output, each divided by its
    value in the unit's first iteration; weights trained through the rounding, and activation steps.
    Convention: one scale per head, 1024 images. Deviations: for a detector the feature is the neck's maps,
    relative to their size, where the authors compare regions of interest of fixed proposals; streams are
    rotated by matrices that fix the all-ones vector, so LayerNorm stays LayerNorm, also in a Swin's later
    stages, where the authors leave them; inputs are QDrop's mix, with its drops; MLPs are fitted to the
    original stream behind them (`refit_relu`); it starts from searched ranges; the profile ``fast`` fits the
    MLP in closed form and has a logarithmic grid for the attention map (`Frontier`).
    """

    name = "glf-q"
    version = 2
    paper = "Sun, Liang, Tong, Wu, GLF-Q (global feature loss for PTQ of vision transformers), 2026"
    profiles = {
        "paper": RELU_PAPER
        | {"iterations": 3000, "learn": "weights", "weight_rate": 2e-5, "step_rate": 2e-4}
    }
    Parameters = GlfParameters

    def notes(self) -> tuple[str, ...]:
        """Return also that the model is rotated first."""
        words = super().notes()
        return (*words, "heads and residual streams rotated") if self.parameters.rotate else words

    def prepare(
        self, model: parts.QuantizedModel, calibration: parts.Calibration
    ) -> parts.QuantizedModel | None:
        """Rotate what can be rotated, then fit the MLPs with ReLU."""
        if self.parameters.rotate:
            possible = [name for name in ROTATIONS if parts.transform_problem(name, model) is None]
            parts.apply_transforms(model, possible, calibration)
        return super().prepare(model, calibration)

    def recipe(self) -> parts.Recipe:
        """The feature and, with `local_weight`, the unit's own output."""
        p = self.parameters
        feature = parts.FeatureError(floor=FLOOR, every=p.global_every)
        return self.configured([feature, parts.MeanError(weight=p.local_weight, floor=FLOOR)])
