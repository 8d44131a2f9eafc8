"""The base class of reconstruction methods, and its settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.quantization.bits import (
    OPERAND_ROLES,
    BitTable,
    BitWidth,
    equal_table,
)
from vit_ptq_bench.methods.quantization.reconstruction.choices import UnitGranularity

Profile = Literal["fast", "paper"]


@dataclass(frozen=True)
class ReconstructionParameters(ReparameterizationParameters):
    """Settings of every reconstruction method; those of the base are RepQ-ViT's.

    The defaults are the profile ``fast``, for minutes on two cores (docs/reconstruction.md says how they were
    chosen). The profile ``paper`` has the authors' iterations, batches and rates, for a GPU.

    Attributes:
        profile: ``fast`` or ``paper``; what is set besides it counts more.
        unit: what is reconstructed at once.
        iterations: per unit.
        batch_size: images per iteration.
        learn: ``rounding`` (AdaRound) or ``weights`` (trained through the rounding).
        weight_rate: Adam's learning rate of the roundings or weights.
        step_rate: Adam's learning rate of the activation steps; 0 leaves them as calibrated.
    """

    profile: Profile = "fast"
    unit: UnitGranularity = "block"
    iterations: int = bounded(60, at_least=0)
    batch_size: int = counted(8)
    learn: Literal["rounding", "weights"] = "weights"
    weight_rate: float = bounded(1.5e-4, at_least=0)
    step_rate: float = bounded(4e-5, at_least=0)


PAPER = {"iterations": 20000, "batch_size": 32, "learn": "rounding", "weight_rate": 1e-3}
"""The authors' settings of BRECQ's, QDrop's and PD-Quant's released code."""


class Reconstruction(Method):
    """Base class: a calibration to start from, RepQ-ViT's, then unit by unit reconstruction by `recipe`.

    Units are the patch embedding, each transformer block, each patch merging, and the head, which is trained
    on the KL of the logits. The base that is known to work on vision transformers: affine quantizers
    everywhere, per-channel weights, LayerNorm outputs reparameterized, the scales of attention maps
    searched by the error of attention x value; authors' convention: one scale per head in both
    attention products.
    """

    fidelity = "reimplementation"
    calibration_images = 1024
    detection_images = 256
    quick = {"iterations": 6}
    profiles = {"paper": PAPER}
    Parameters = ReconstructionParameters

    def notes(self) -> tuple[str, ...]:
        """Return the common words and how long is trained what: results depend on it."""
        settings = self.parameters
        trained = "roundings" if settings.learn == "rounding" else "weights"
        steps = " and activation steps" if settings.step_rate > 0 else ""
        return (
            *super().notes(),
            f"trains {trained}{steps}, {settings.iterations} iterations "
            f"of {settings.batch_size} images per {settings.unit}",
        )

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with one scale per head."""
        return equal_table(bits).change(OPERAND_ROLES, granularity="head")

    @abstractmethod
    def recipe(self) -> parts.Recipe:
        """Return how units are reconstructed."""

    def configured(
        self,
        losses: Sequence[parts.Loss],
        input_mix: float,
        keep: float,
        weighting: parts.Weighting = "first",
    ) -> parts.Recipe:
        """Return a recipe with what the method decides and what the parameters say."""
        settings = self.parameters
        weights: parts.Trainable = (
            parts.Roundings(settings.weight_rate)
            if settings.learn == "rounding"
            else parts.Weights(settings.weight_rate)
        )
        return parts.Recipe(
            losses=losses,
            trainables=(weights, parts.Steps(settings.step_rate)),
            unit=settings.unit,
            iterations=settings.iterations,
            batch_size=settings.batch_size,
            input_mix=input_mix,
            keep=keep,
            weighting=weighting,
        )

    def start(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set every quantizer before anything is reconstructed; RepQ-ViT's calibration unless overridden."""
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=self.parameters.zero_point,
            scale=self.parameters.scale,
            progress=progress,
        )

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Calibrate to start from, search the scales of attention maps, then reconstruct."""
        recipe = self.recipe()
        recipe.check(model.structure, calibration.n_images)
        few = calibration.first(parts.range_images(model, calibration))
        self.start(model, few)
        model.activate()
        images = few.whole()
        parts.search_maps(model.operations, lambda: model(images))
        parts.reconstruct(model, calibration, recipe, progress)
