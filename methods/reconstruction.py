"""What the reconstruction methods share: base, settings, and the way to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from methods.base import Fidelity
from methods.quantization.bits import OPERAND_ROLES, BitTable, BitWidth, Scheme, equal_table
from methods.quantization.calibration import Calibration, Progress
from methods.quantization.model import QuantizedModel
from methods.quantization.reconstruction import Recipe, Term, reconstruct
from methods.quantization.reconstruction.learned import Learn
from methods.repq_vit import RepQParameters, RepQViT


@dataclass(frozen=True)
class ReconstructionParameters(RepQParameters):
    """Settings of every reconstruction method; those of the base are RepQ-ViT's.

    Attributes:
        iterations: per unit; the papers run 20000 on a GPU.
        batch_size: images per iteration.
        learn: ``rounding`` (AdaRound) or ``weights`` (trained through the rounding).
        weight_rate: Adam's learning rate of the roundings or weights.
        step_rate: Adam's learning rate of the activation steps; 0 leaves them as calibrated.
    """

    iterations: int = 2000
    batch_size: int = 32
    learn: Learn = "rounding"
    weight_rate: float = 1e-3
    step_rate: float = 4e-5


class Reconstruction(RepQViT):
    """Base class: RepQ-ViT's calibration, then unit by unit reconstruction by `recipe`.

    Units are the patch embedding, each transformer block, each patch merging, and the head, which learns
    on the KL of the logits. The base that is known to work on vision transformers: affine quantizers
    everywhere, per-channel weights, LayerNorm outputs reparameterized; authors' convention: one scale per
    head in both attention products.
    """

    fidelity: ClassVar[Fidelity] = "reimplementation"
    calibration_images = 1024
    schemes: ClassVar[dict[str, Scheme]] = {}
    quick = {"iterations": 6, "batch_size": 8}
    Parameters = ReconstructionParameters

    def convention(self, table: BitTable) -> str:
        """Return the common words and how long is learned what: results depend on it."""
        settings = self.parameters
        learned = "roundings" if settings.learn == "rounding" else "weights"
        steps = " and activation steps" if settings.step_rate > 0 else ""
        return (
            f"{super().convention(table)}; trains {learned}{steps}, "
            f"{settings.iterations} iterations of {settings.batch_size} images per unit"
        )

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with one scale per head."""
        return equal_table(bits).change(OPERAND_ROLES, granularity="head")

    def recipe(self) -> Recipe:
        """Return how units are reconstructed."""
        raise AssertionError("defined by each method")

    def configured(
        self, terms: Sequence[Term], input_mix: float, keep: float, normalise: bool = True
    ) -> Recipe:
        """Return a recipe with what the method decides and what the parameters say."""
        settings = self.parameters
        return Recipe(
            terms=terms,
            input_mix=input_mix,
            keep=keep,
            normalise=normalise,
            iterations=settings.iterations,
            batch_size=settings.batch_size,
            learn=settings.learn,
            weight_rate=settings.weight_rate,
            step_rate=settings.step_rate,
        )

    def calibrate(
        self, model: QuantizedModel, calibration: Calibration, progress: Progress | None = None
    ) -> None:
        """Calibrate as RepQ-ViT does, then reconstruct."""
        super().calibrate(model, calibration)
        reconstruct(model, calibration, self.recipe(), progress)
