"""LRQuant and LRQuant+: trained smoothing, weight clipping, and a loss that aligns directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    INPUT_SITES,
    OPERAND_ROLES,
    BitTable,
    BitWidth,
    equal_table,
)

FLOATING = ("patch_embed.weight", "patch_embed.input", "head.weight", "head.input", *OPERAND_ROLES)
"""What the authors' code for vision transformers leaves in floating point."""

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LRQuantParameters:
    """Settings of `LRQuant`.

    Attributes:
        profile: ``fast`` (default) or ``paper``: 20 epochs over 32 images, one image at a time.
        iterations: per block.
        batch_size: images per iteration.
        smoothing_rate: Adam's learning rate of scales and shifts.
        clipping_rate: Adam's learning rate of the clipping logits (and of LRQuant+'s vectors).
        step_rate: Adam's learning rate of static activations' steps.
        shift: train shifts besides scales.
    """

    profile: Literal["fast", "paper"] = "fast"
    iterations: int = bounded(80, at_least=0)
    batch_size: int = counted(4)
    smoothing_rate: float = bounded(5e-3, at_least=0)
    clipping_rate: float = bounded(1e-2, at_least=0)
    step_rate: float = bounded(1e-3, at_least=0)
    shift: bool = True


@register_method
class LRQuant(Method):
    """Block by block, train smoothing scales and shifts and weight clipping on error and direction.

    Source: Zhao et al., ACL 2024; the algorithm on vision transformers confirmed from the released code.
    Behind each LayerNorm and for the values ``x' = (x - z) / s``, ``W' = W diag(s)``, s starting at
    ``a / log2(2 + a)``; weights clipped to (sigmoid(l) min, sigmoid(u) max); loss: mean squared error plus
    negative log cosine of the block's output, target full precision, input the quantized prefix.
    Convention (authors): activations dynamic per token; attention products, patch embedding and head in
    floating point; 32 images. Under the common table activations are static per tensor: calibrated on least
    squared error with the smoothing's start in place, attention maps on the error of attention x value, then
    their steps are trained with the rest (over the range of each batch, as dynamic ones are, the rest would
    be trained for ranges that it never gets: that was no better than no training); the values get no
    shift, for the rows of a quantized attention map do not sum to 1. Deviations: float32 instead of float16;
    z starts at the mean over images of the channels' middle, not at a moving average; patch embedding and
    mergings (norm to reduction), where quantized, are trained like blocks. The head, which the authors never
    train, has the start of what is trained: two or three numbers for each class fit the predictions of 32
    images and spoil all others (on ViT-Tiny at six bits more than everything else together).
    """

    name = "lrquant"
    version = 4
    paper = "Zhao et al., LRQuant: Trainable and Robust PTQ for Large Language Models, ACL 2024"
    fidelity = "reimplementation"
    family = "reconstruction"
    quick = {"iterations": 3}
    profiles = {"paper": {"iterations": 640, "batch_size": 1}}
    Parameters = LRQuantParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the released code for vision transformers."""
        table = equal_table(bits).change(INPUT_SITES, granularity="token", dynamic=True)
        return table.change(FLOATING, bits=FLOAT, granularity="tensor", dynamic=False)

    def notes(self) -> tuple[str, ...]:
        """Return the common words and how long is trained what."""
        p = self.parameters
        return (
            *super().notes(),
            f"trains smoothing and weight clipping, {p.iterations} "
            f"iterations of {p.batch_size} images per block",
        )

    def losses(self) -> tuple[tuple[parts.Loss, ...], parts.Weighting]:
        """Return the loss and how its losses are weighted."""
        return (parts.MeanError(), parts.NegativeLogCosine()), "plain"

    def recipe(self, gain: bool = False) -> parts.Recipe:
        """Quantized input, nothing dropped; ``gain``: LRQuant+'s vectors."""
        p = self.parameters
        losses, weighting = self.losses()
        rule = parts.histogram_shrink_rule()
        return parts.Recipe(
            losses=losses,
            trainables=(
                parts.Clipping(p.clipping_rate, gain=gain),
                parts.Smoothing(p.smoothing_rate, shift=p.shift, gain=gain),
                parts.Ranges(p.step_rate, rule=rule),
            ),
            iterations=p.iterations,
            batch_size=p.batch_size,
            input_mix=1.0,
            keep=1.0,
            weighting=weighting,
            rule=_unless_set(rule),
            untrained=("head",),
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
        """Min-max weight ranges to start from, then block by block."""
        recipe = self.recipe()
        parts.calibrate_weights(model, parts.minmax_rule)
        parts.reconstruct(model, calibration, recipe, progress)
        self._calibrate_behind(model, calibration)

    def _calibrate_behind(
        self, model: parts.QuantizedModel, calibration: parts.Calibration
    ) -> None:
        """Calibrate what is in no block, neck and heads of a detector, behind the trained backbone."""
        sites = list(parts.sites_of(model.structure.behind()))
        for site in sites:
            site.quantizer.active = site.is_weight
        if sites:
            rule = parts.histogram_shrink_rule()
            images = calibration.first(parts.range_images(model, calibration)).whole()
            parts.calibrate_sites(sites, lambda: model(images), rule, sequential=True)


def _unless_set(rule: parts.RangeRule) -> parts.RangeRule:
    """Leave the steps that were trained; what a unit that was given back has lost is calibrated."""

    def calibrate(site: parts.Site, x: Tensor) -> None:
        if not site.quantizer.initialised:
            rule(site, x)

    return calibrate


@register_method
class LRQuantPlus(LRQuant):
    """LRQuant with a second target, loss weights from running means, and trained row and column factors.

    Source: Zhao et al., TPAMI 2025; the list of parts confirmed from its abstract, their form from the
    released code for language models: the block is also compared with the full-precision block on the same
    quantized input (homologous branch); each loss is divided by its running mean (0.95); ``W^ = r1 r2 Q(W)``
    element by element ("rotation vectors" of rank 1). Deviations: r1 is folded into the rows' scales and r2
    into the scale of the input, so that the deployed weight stays a b-bit integer matrix; the released code
    for vision transformers trains neither and runs the second branch alone.
    """

    name = "lrquant-plus"
    version = 4
    paper = "Zhao et al., LRQuant+: A Unified and Trainable Framework to PTQ, TPAMI 2025"

    def losses(self) -> tuple[tuple[parts.Loss, ...], parts.Weighting]:
        """Both branches, each with both losses."""
        branch: tuple[parts.Loss, ...] = (parts.MeanError(), parts.NegativeLogCosine())
        return (*branch, *(parts.Homologous(loss=loss) for loss in branch)), "running"

    def recipe(self, gain: bool = True) -> parts.Recipe:
        """LRQuant's, with the vectors."""
        return super().recipe(gain)
