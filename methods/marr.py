"""MARR: rotated residual stream and heads, residual-aware rounding with a strength per layer."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.registry import register_method

ROTATIONS = ("rotate-residual", "rotate-heads")


@dataclass(frozen=True)
class MarrParameters(ReparameterizationParameters):
    """Settings of `Marr`; those of the activations are RepQ-ViT's.

    Attributes:
        rotate: rotate the residual stream, and queries, keys and values per head, as the authors' tables do.
        folds: of the calibration images, by which each layer's strength is validated.
        damping: added to the diagonal of the second moment, as a share of its mean.
    """

    rotate: bool = True
    folds: int = counted(4, at_least=2)
    damping: float = bounded(0.1, at_least=0)


@register_method
class Marr(Method):
    """Residual-aware column-wise rounding, as strong in each layer as it helps unseen images.

    Source: arXiv 2605.17997 (2026): offline rotations of the residual stream and of the heads, then GPTAQ's
    compensation for quantized inputs with a strength of its own in each module. What is ours: the strength
    comes from a cross-validation over the calibration images in closed form, where the authors control it
    step by step; activations as RepQ-ViT's, for their granularity could not be read; a rotation that fixes
    the all-ones vector, so that LayerNorm stays as it is. Convention: the common table, static.
    """

    name = "marr"
    paper = "MARR, arXiv 2605.17997, 2026"
    fidelity = "reimplementation"
    family = "compensation"
    calibration_images = 128
    detection_images = 32
    schemes = {"attention": "log-sqrt2"}
    note = "activations as in RepQ-ViT; strengths by cross-validation instead of the authors' controller"
    Parameters = MarrParameters

    @property
    def _visit(self) -> parts.ResidualAware:
        """How each layer is rounded."""
        p = self.parameters
        return parts.ResidualAware(strength=None, folds=p.folds, damping=p.damping)

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse fewer images than folds."""
        self._visit.check(calibration.n_images)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Rotate, calibrate as RepQ-ViT, then round layer by layer with two streams."""
        p = self.parameters
        if p.rotate:
            names = [name for name in ROTATIONS if parts.transform_problem(name, model) is None]
            parts.apply_transforms(model, names, calibration)
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            weight_rule=parts.shrink_rule(),
        )
        parts.round_with_residuals(model, calibration, self._visit, progress)
