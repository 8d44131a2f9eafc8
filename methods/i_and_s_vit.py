"""I&S-ViT: shift-uniform-log2 attention maps, and weights trained before and after they are quantized."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitTable, BitWidth, equal_table

ACTIVATION_PERCENTILES = (0.999, 0.9999, 0.99999)

WEIGHT_PERCENTILES = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999)
"""The released code's nine. With 0.999 in the place of 0.9997 (version 1) one block of ViT-Tiny, in which
a few tokens are very large, came out a quarter worse."""


@dataclass(frozen=True)
class IAndSViTParameters(ReparameterizationParameters):
    """Settings of `IAndSViT`.

    Attributes:
        profile: ``fast``, for minutes on two cores, or ``paper``: the released code's.
        smooth: train weights in floating point first, with LayerNorm outputs quantized per channel (stage 1).
        iterations: per unit and stage.
        batch_size: images per iteration.
        weight_rate: Adam's learning rate of weights and biases.
    """

    profile: Literal["fast", "paper"] = "fast"
    smooth: bool = True
    iterations: int = bounded(60, at_least=0)
    batch_size: int = counted(8)
    weight_rate: float = bounded(1.5e-4, at_least=0)


@register_method
class IAndSViT(Method):
    """Activations first, on a smooth loss; then reparameterize; then weights through their rounding.

    Source: Zhong et al., arXiv 2311.10126 (TPAMI 2025); algorithm confirmed from the released code. Attention
    maps: uniform codes of -log2(a + eta), eta by least squared error. Stage 1: LayerNorm outputs per channel,
    weights in floating point, weights and biases trained unit by unit on the squared error of the output,
    full-precision input. Stage 2: RepQ-ViT's reparameterization, exact for such weights. Stage 3: weights
    quantized, the same training through the rounding, input from the quantized prefix. Targets are always the
    original model's; quantizers' parameters and LayerNorms stay. Convention (authors): the image in floating
    point, 1024 images. Deviations: 2^b codes of the map, not 2^b + 1; of a Swin the reduction's input is
    reparameterized too; the head is trained on the KL of the logits; integer zero points; the profile
    ``fast`` has few iterations at a higher rate; ``paper`` keeps 1000 at six bits too (200 there).
    """

    name = "i-and-s-vit"
    paper = (
        "Zhong et al., I&S-ViT: An Inclusive & Stable Method for Pushing the Limit of Post-Training ViTs "
        "Quantization, TPAMI 2025"
    )
    fidelity = "reimplementation"
    family = "reconstruction"
    version = 2
    calibration_images = 1024
    schemes = {"attention": "shift-uniform-log2"}
    quick = {"iterations": 2, "batch_size": 4}
    profiles = {"paper": {"iterations": 1000, "batch_size": 64, "weight_rate": 4e-5}}
    Parameters = IAndSViTParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with the image in floating point."""
        return equal_table(bits).change("patch_embed.input", bits=FLOAT)

    def notes(self) -> tuple[str, ...]:
        """Return how long is trained what."""
        p = self.parameters
        stages = "before and after they are quantized" if p.smooth else "through the rounding"
        return (
            *super().notes(),
            f"trains weights and biases {stages}, {p.iterations} iterations of {p.batch_size} images "
            "per block each time",
        )

    def recipe(self) -> parts.Recipe:
        """Stage 3: everything quantized, nothing dropped."""
        p = self.parameters
        return parts.Recipe(
            losses=(parts.BlockError(),),
            trainables=(
                parts.Weights(p.weight_rate),
                parts.Biases(p.weight_rate),
            ),
            iterations=p.iterations,
            batch_size=p.batch_size,
            input_mix=1.0,
            keep=1.0,
        )

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse too few images, and losses that the units cannot give."""
        self.recipe().check(model.structure, calibration.n_images)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Ranges, then the three stages."""
        recipe = self.recipe()
        teacher = copy.deepcopy(model)
        few = calibration.first(parts.range_images(model, calibration))
        weights = parts.best_percentile_rule(WEIGHT_PERCENTILES)
        links = parts.split_channels(model)
        parts.calibrate_weights(model, weights)
        rule = parts.shift_rule(parts.best_percentile_rule(ACTIVATION_PERCENTILES))
        parts.calibrate_activations(model, few, rule, sequential=True)
        if self.parameters.smooth:
            first = replace(
                recipe,
                trainables=(parts.FloatWeights(self.parameters.weight_rate),),
                input_mix=0.0,
                quantize_weights=False,
            )
            parts.reconstruct(model, calibration, first, self._told(progress, 0), teacher)
        parts.join_channels(links, self.parameters.zero_point, self.parameters.scale)
        parts.calibrate_weights(model, weights)
        parts.reconstruct(model, calibration, recipe, self._told(progress, 1), teacher)

    def _told(
        self, progress: parts.CalibrationProgress | None, half: int
    ) -> parts.CalibrationProgress | None:
        """The progress of one of two trainings, told as that of both."""
        if progress is None or not self.parameters.smooth:
            return progress
        return partial(_of_both, progress, half)


def _of_both(
    progress: parts.CalibrationProgress, half: int, done: int, total: int, stage: str = ""
) -> None:
    progress(half * total + done, 2 * total, stage)
