"""MGRQ: mixed granularity reconstruction (re-implementation from the abstract)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.reconstruction import Reconstruction, ReconstructionParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.api.tables import with_forms
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, Protocol, equal_table

GLOBAL_FLOOR = 1e-4
"""The KL of an early block at 6 bits is almost zero: dividing by it would make noise of full weight."""


@dataclass(frozen=True)
class MgrqParameters(ReconstructionParameters):
    """Settings of `Mgrq`; the switches are those of its ablation.

    Attributes:
        block: reconstruct at all (OBWR); off, MGRQ is its base.
        global_weight: of extra-block global supervision (EBGS); 0 switches it off.
        local_weight: of intra-block local supervision (IBLS); 0 switches it off.
        temperature: of the softmaxes of EBGS.
        drop: share of quantized values, in the unit's input and inside, as in QDrop; 1: no drop.
        global_every: EBGS, by far the dearest loss, counts in every so-manieth iteration only, with so many
            times its weight.
        start: what it starts from, and what its ablation's base is: this project's transforms, levels
            and weights solved in ``closed-form`` (docs/rose.md), or RepQ-ViT's calibration (``repq``).
        attention: form of the attention map's quantizer, ``codebook-float``, ``log`` (free base),
            ``log-sqrt2`` as RepQ-ViT's, or ``uniform``; None: a codebook on the start in closed form,
            else ``log-sqrt2``.
        gelu: form of the quantizer behind GELU, ``codebook-float``, ``offset-log``, ``shifted-log`` or
            ``uniform``; None: a codebook on the start in closed form, else ``uniform``.
        levels: of all else, a ``codebook`` as in `rose`, or ``uniform``; None: the same choice.
        holdout: share of the images that is judged on instead: a unit that is no better there than it was at
            its start goes back to it, and so does in the end the whole model, unless its prediction there is
            clearly nearer to full precision; 0: whatever comes out is kept.
    """

    block: bool = True
    global_weight: float = bounded(0.1, at_least=0)
    local_weight: float = bounded(0.3, at_least=0)
    temperature: float = bounded(1.0, more_than=0)
    drop: float = bounded(0.5, at_least=0, at_most=1)
    global_every: int = counted(1)
    start: Literal["closed-form", "repq"] = "closed-form"
    attention: Literal["codebook-float", "log", "log-sqrt2", "uniform"] | None = None
    gelu: Literal["codebook-float", "offset-log", "shifted-log", "uniform"] | None = None
    levels: Literal["codebook", "uniform"] | None = None
    holdout: float = bounded(0.25, at_least=0, at_most=0.9)


@register_method
class Mgrq(Reconstruction):
    """Reconstruct blocks on their output, the model's prediction and the distributions inside them.

    Source: Yang et al., ICIP 2024 (arXiv 2406.09229). What the abstract states: block-wise reconstruction
    (OBWR) as base; global supervision by the relation between a block's output and the model's (EBGS);
    local supervision that aligns the distribution of each layer's output inside a block (IBLS); a fused
    loss (MGLF). What is our design, for the text could not be had: the base (function-preserving transforms,
    levels and weights found in closed form as `rose` has them, or RepQ-ViT's calibration), what is trained
    and how, QDrop's mix, EBGS as the KL of the prediction through the full-precision rest of the model, IBLS
    as the KL between channel distributions, losses divided by their first values, a quarter of the images
    that judges each unit and in the end the whole, which else is the start again, all weights and rates
    (docs/reconstruction.md). Not the authors' numbers. Convention: the common table, codebooks, static.
    """

    name = "mgrq"
    paper = (
        "Yang et al., MGRQ: PTQ for Vision Transformer with Mixed Granularity Reconstruction, "
        "ICIP 2024"
    )
    version = 7
    fidelity = "inspired"
    note = (
        "re-implementation from the abstract; losses, weights and rates are this project's design"
    )
    quick = {"iterations": 1, "batch_size": 4}
    Parameters = MgrqParameters

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the common table with the forms of start and parameters."""
        p, closed = self.parameters, self.parameters.start == "closed-form"
        table = super().bit_table(bits, protocol)
        return with_forms(
            table,
            p.attention or ("codebook-float" if closed else "log-sqrt2"),
            p.gelu or ("codebook-float" if closed else "uniform"),
            p.levels or ("codebook" if closed else "uniform"),
        )

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table: nothing is known of the authors' own."""
        return equal_table(bits)

    def notes(self) -> tuple[str, ...]:
        """Return the words of all reconstruction methods, the base, and what a training in vain leaves."""
        p = self.parameters
        closed = p.start == "closed-form"
        words = "starts from weights solved in closed form" if closed else "starts from RepQ-ViT"
        if not p.block:
            return (self.note, f"no reconstruction; {words}")
        judged = (
            f"and is the start again unless clearly better on a share of {p.holdout:g} held out"
        )
        return (*super().notes(), f"{words} {judged}" if p.holdout > 0 else words)

    def closed_form(self) -> parts.ClosedForm | None:
        """Return `rose`'s closed form, unless it starts from RepQ-ViT."""
        return parts.ClosedForm() if self.parameters.start == "closed-form" else None

    def recipe(self) -> parts.Recipe:
        """Three granularities, each a switch."""
        settings = self.parameters
        losses: tuple[parts.Loss, ...] = (
            parts.BlockError(),
            parts.PredictionDivergence(
                weight=settings.global_weight,
                floor=GLOBAL_FLOOR,
                temperature=settings.temperature,
                every=settings.global_every,
            ),
            parts.LocalDivergence(weight=settings.local_weight),
        )
        recipe = self.configured(losses, input_mix=settings.drop, keep=settings.drop)
        return replace(recipe, holdout=settings.holdout)

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse what cannot be reconstructed; the ablation's base takes any images."""
        if self.parameters.block:
            super().check(model, calibration)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Reconstruct, unless the ablation's base is asked for."""
        closed = self.closed_form()
        if self.parameters.block:
            super().calibrate(model, calibration, progress)
        elif closed is None:
            self.start(model, calibration, progress)
        else:
            parts.calibrate_closed_form(model, calibration, closed, progress)
