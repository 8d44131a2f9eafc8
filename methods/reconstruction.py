"""What the reconstruction methods share: base, settings, and the way to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.base import Fidelity
from methods.quantization.bits import OPERAND_ROLES, BitTable, BitWidth, Scheme, equal_table
from methods.quantization.calibration import Calibration, Progress, hooks
from methods.quantization.layers import QuantMatMul
from methods.quantization.model import QuantizedModel
from methods.quantization.reconstruction import (
    Granularity,
    Learnable,
    Recipe,
    Roundings,
    Steps,
    Term,
    Weighting,
    Weights,
    reconstruct,
)
from methods.quantization.search import Grid, search_map
from methods.repq_vit import RepQParameters, RepQViT

Profile = Literal["fast", "paper"]

ATTENTION_GRID = Grid(alpha=1 / 128, beta=129 / 128, steps=128)
"""1/128 to the whole of the extreme values: most of an attention map is far below its largest entry."""

SEARCH_IMAGES = 128


@dataclass(frozen=True)
class ReconstructionParameters(RepQParameters):
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
    unit: Granularity = "block"
    iterations: int = 60
    batch_size: int = 8
    learn: Literal["rounding", "weights"] = "weights"
    weight_rate: float = 1.5e-4
    step_rate: float = 4e-5


PAPER = {"iterations": 20000, "batch_size": 32, "learn": "rounding", "weight_rate": 1e-3}
"""The authors' settings of BRECQ's, QDrop's and PD-Quant's released code."""


class Reconstruction(RepQViT):
    """Base class: RepQ-ViT's calibration, then unit by unit reconstruction by `recipe`.

    Units are the patch embedding, each transformer block, each patch merging, and the head, which learns
    on the KL of the logits. The base that is known to work on vision transformers: affine quantizers
    everywhere, per-channel weights, LayerNorm outputs reparameterized, the scales of attention maps
    searched by the error of attention x value; authors' convention: one scale per head in both
    attention products.
    """

    fidelity: ClassVar[Fidelity] = "reimplementation"
    calibration_images = 1024
    detection_images = 256
    schemes: ClassVar[dict[str, Scheme]] = {}
    quick = {"iterations": 6}
    profiles = {"paper": PAPER}
    Parameters = ReconstructionParameters

    def convention(self, table: BitTable) -> str:
        """Return the common words and how long is learned what: results depend on it."""
        settings = self.parameters
        learned = "roundings" if settings.learn == "rounding" else "weights"
        steps = " and activation steps" if settings.step_rate > 0 else ""
        return (
            f"{super().convention(table)}; trains {learned}{steps}, {settings.iterations} iterations "
            f"of {settings.batch_size} images per {settings.unit}"
        )

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with one scale per head."""
        return equal_table(bits).change(OPERAND_ROLES, granularity="head")

    def recipe(self) -> Recipe:
        """Return how units are reconstructed."""
        raise AssertionError("defined by each method")

    def configured(
        self,
        terms: Sequence[Term],
        input_mix: float,
        keep: float,
        weighting: Weighting = "first",
    ) -> Recipe:
        """Return a recipe with what the method decides and what the parameters say."""
        settings = self.parameters
        weights: Learnable = (
            Roundings(settings.weight_rate)
            if settings.learn == "rounding"
            else Weights(settings.weight_rate)
        )
        return Recipe(
            terms=terms,
            learnables=(weights, Steps(settings.step_rate)),
            unit=settings.unit,
            iterations=settings.iterations,
            batch_size=settings.batch_size,
            input_mix=input_mix,
            keep=keep,
            weighting=weighting,
        )

    def calibrate(
        self, model: QuantizedModel, calibration: Calibration, progress: Progress | None = None
    ) -> None:
        """Calibrate as RepQ-ViT does, then reconstruct."""
        recipe = self.recipe()
        recipe.check(model.structure, calibration.n_images)
        super().calibrate(model, calibration)
        search_attention(model, calibration)
        reconstruct(model, calibration, recipe, progress)


@torch.no_grad()
def search_attention(model: QuantizedModel, calibration: Calibration) -> None:
    """Set the scales of attention maps by the squared error of attention x value.

    One pass over at most `SEARCH_IMAGES` images, each product behind a quantized prefix. Only where the
    attention map has a static uniform quantizer: its values lie so far apart that a percentile of them says
    little of what the product needs; the logarithmic form has no such trouble. Searching the values and the
    product of queries and keys too gave no more (ViT-Tiny, W4A4).
    """
    model.activate()
    products = [op for op in model.operations if isinstance(op, QuantMatMul)]
    with hooks() as stack:
        for product in products:
            if product.role == "context" and _has_uniform_map(product):
                stack.callback(product.register_forward_pre_hook(_search_map).remove)
        model(calibration.whole()[:SEARCH_IMAGES])


def _has_uniform_map(product: QuantMatMul) -> bool:
    spec = product.first_quantizer.spec
    return spec.scheme == "uniform" and not spec.is_float and not spec.dynamic


def _search_map(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(product, QuantMatMul)
    search_map(product, inputs, ATTENTION_GRID)
