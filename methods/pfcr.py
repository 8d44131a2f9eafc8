"""PFCR: progressive fine-to-coarse reconstruction (re-implementation from the abstract)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.reconstruction import Frontier
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.errors import MethodError


@dataclass(frozen=True)
class PfcrParameters(ReparameterizationParameters):
    """Settings of `Pfcr`.

    Attributes:
        profile: ``fast``, for minutes on two cores, or ``long``, for a GPU: as many iterations as I&S-ViT's
            released code has.
        layer_iterations: per single layer, the finest granularity; 0 leaves a granularity out.
        half_iterations: per attention and per MLP, each with its shortcut.
        block_iterations: per block.
        pair_iterations: per two blocks next to each other, of one resolution.
        batch_size: images per iteration.
        weight_rate: Adam's learning rate of the weights at the finest granularity that is not left out.
        rate_decay: each coarser granularity has so many times the rates of the one before.
        step_rate: the same of the activation steps.
        decay: what it costs a weight to leave its start, that of the granularity; see `quantization.Weights`.
        drop: share of quantized values, in the unit's input and inside, as in QDrop; 1: no drop.
        two_stages: go through all granularities with activations quantized and weights in floating point
            first, then once more with both quantized.
        start: the calibration to begin with: both ends of every range by squared error (``searched``),
            RepQ-ViT's percentiles (``repq``), or this project's transforms and weights solved in
            ``closed-form`` (docs/rose.md).
        attention: form of the attention map's quantizer, ``uniform``, or ``log`` with the base that its
            product with the values asks for.
        gelu: form of the quantizer behind GELU, ``uniform``, ``shifted-log`` or ``offset-log``.
    """

    profile: Literal["fast", "long"] = "fast"
    layer_iterations: int = bounded(0, at_least=0)
    half_iterations: int = bounded(100, at_least=0)
    block_iterations: int = bounded(60, at_least=0)
    pair_iterations: int = bounded(40, at_least=0)
    batch_size: int = counted(8)
    # The 1.5e-4 of other methods is better on the bundled models, but takes a real ViT-Tiny below its start.
    weight_rate: float = bounded(4e-5, at_least=0)
    rate_decay: float = bounded(0.5, more_than=0, at_most=1)
    step_rate: float = bounded(4e-5, at_least=0)
    decay: float = bounded(0.1, at_least=0)
    drop: float = bounded(1.0, at_least=0, at_most=1)
    two_stages: bool = False
    start: Literal["searched", "repq", "closed-form"] = "searched"
    attention: Literal["uniform", "log"] = "log"
    gelu: Literal["uniform", "shifted-log", "offset-log"] = "uniform"


LONG = {
    "half_iterations": 1000,
    "block_iterations": 500,
    "pair_iterations": 250,
    "batch_size": 64,
}
"""I&S-ViT's iterations at the finest granularity, half as many at each coarser one: not the authors'."""


@register_method
class Pfcr(Frontier):
    """Attention and MLP are reconstructed, then the blocks they make up, then pairs of blocks.

    Source: Ding et al., Neural Networks 2025 (arXiv 2412.14633). What the abstract states: attention and MLP,
    each with its shortcut, are the finest units; they are combined into coarser ones that are
    reconstructed again, step by step; a progressive optimization strategy makes the training easier. What is
    our design, for the text could not be had: a block is begun when all before it is finished, at every
    granularity, and each granularity starts with the weights and steps of the finer one; the error is the
    squared one of the unit's output, on input from the quantized prefix, the target full precision; weights
    are trained through their rounding and held to their start, with rates that fall from granularity to
    granularity; blocks are combined to pairs at most, never across resolutions; the strategy's two stages
    (activations quantized first, then weights too) are the setting `two_stages`; single layers may come
    first. Not the authors' numbers. Convention: the common table, a logarithmic attention map as the authors
    have one, static.
    """

    name = "pfcr"
    version = 1
    paper = (
        "Ding et al., Progressive Fine-to-Coarse Reconstruction for Accurate Low-Bit PTQ in Vision "
        "Transformers, Neural Networks 2025"
    )
    fidelity = "inspired"
    note = (
        "re-implementation from the abstract; schedule, rates and stages are this project's design"
    )
    quick = {
        "half_iterations": 1,
        "block_iterations": 1,
        "pair_iterations": 1,
        "batch_size": 4,
        "decay": 0.0,
    }
    profiles = {"long": LONG}
    Parameters = PfcrParameters

    def granularities(self) -> list[tuple[parts.UnitGranularity, int]]:
        """Return unit and iterations of every granularity, from fine to coarse."""
        p = self.parameters
        known: list[tuple[parts.UnitGranularity, int]] = [
            ("layer", p.layer_iterations),
            ("half", p.half_iterations),
            ("block", p.block_iterations),
            ("disjoint-pair", p.pair_iterations),
        ]
        # With none at all, the start is put into codes block by block.
        return [(unit, count) for unit, count in known if count > 0] or [("block", 0)]

    def notes(self) -> tuple[str, ...]:
        """Return that it is from the abstract, and how long is trained what."""
        p = self.parameters
        lengths = ", ".join(f"{count} per {unit}" for unit, count in self.granularities())
        steps = " and activation steps" if p.step_rate > 0 else ""
        stages = ", weights first in floating point" if p.two_stages else ""
        return (
            self.note,
            f"trains weights{steps}, iterations of {p.batch_size} images: {lengths}{stages}",
        )

    def recipe(self) -> parts.Recipe:
        """That of the coarsest granularity."""
        return self.recipes()[-1]

    def recipes(self, quantized: bool = True) -> list[parts.Recipe]:
        """Return one for each granularity, from fine to coarse.

        Args:
            quantized: whether weights are trained through their rounding, or (the first of two stages) in
                floating point.
        """
        return [
            self._recipe(unit, iterations, self.parameters.rate_decay**level, quantized)
            for level, (unit, iterations) in enumerate(self.granularities())
        ]

    def _recipe(
        self, unit: parts.UnitGranularity, iterations: int, share: float, quantized: bool
    ) -> parts.Recipe:
        p = self.parameters
        weights: parts.Trainable = (
            parts.Weights(share * p.weight_rate, decay=p.decay)
            if quantized
            else parts.FloatWeights(share * p.weight_rate)
        )
        step_rate = share * p.step_rate
        return parts.Recipe(
            losses=(parts.BlockError(),),
            trainables=(weights, parts.LogScales(step_rate), parts.Steps(step_rate)),
            unit=unit,
            iterations=iterations,
            batch_size=p.batch_size,
            input_mix=p.drop,
            keep=p.drop,
            quantize_weights=quantized,
        )

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse too few images, and stages that would undo what was solved."""
        if self.parameters.two_stages and self.parameters.start == "closed-form":
            raise MethodError(
                "two_stages trains weights in floating point first, which undoes those solved in closed "
                "form; use start = 'searched' or 'repq', or leave two_stages off",
                parameter="two_stages",
            )
        super().check(model, calibration)
        parts.check_progression(self.recipes(), model.structure, calibration.n_images)

    def train(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        teacher: parts.QuantizedModel | None,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Reconstruct from fine to coarse, in one stage or in two."""
        if not self.parameters.two_stages:
            parts.reconstruct_progressively(model, calibration, self.recipes(), progress, teacher)
            return
        if teacher is None:
            teacher = copy.deepcopy(model)
        first = None if progress is None else partial(_of_both, progress, 0)
        floating = self.recipes(quantized=False)
        parts.reconstruct_progressively(model, calibration, floating, first, teacher)
        repq = self.parameters.start == "repq"
        rule = parts.best_percentile_rule(parts.PERCENTILES) if repq else parts.two_ended_rule()
        parts.calibrate_weights(model, rule)
        second = None if progress is None else partial(_of_both, progress, 1)
        parts.reconstruct_progressively(model, calibration, self.recipes(), second, teacher)


def _of_both(
    progress: parts.CalibrationProgress, half: int, done: int, total: int, stage: str = ""
) -> None:
    """Tell the progress of one of two trainings as that of both."""
    progress(half * total + done, 2 * total, stage)
