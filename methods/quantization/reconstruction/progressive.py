"""Progressive reconstruction: fine units, then the coarser ones that they make up, block after block."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Structure
from vit_ptq_bench.methods.quantization.reconstruction.choices import UnitGranularity
from vit_ptq_bench.methods.quantization.reconstruction.engine import Engine, count_of, finish
from vit_ptq_bench.methods.quantization.reconstruction.loop import Streams
from vit_ptq_bench.methods.quantization.reconstruction.recipe import Recipe
from vit_ptq_bench.methods.quantization.reconstruction.units import Step

FINE_TO_COARSE: tuple[UnitGranularity, ...] = ("layer", "half", "block", "disjoint-pair", "stage")
"""Granularities of which each unit is made up of whole units of those before it."""


def check_progression(recipes: Sequence[Recipe], structure: Structure, images: int) -> None:
    """Refuse recipes that do not go from fine to coarse, or that cannot work.

    Args:
        recipes: as in `reconstruct_progressively`.
        structure: of the wrapped model.
        images: how many there are to calibrate with.

    Raises:
        MethodError: see `Recipe.check`; no recipe, units out of order or that are no part of coarser ones;
            with several a loss that needs the rest of the model, images held out, or a rule of ranges.
    """
    units = [recipe.unit for recipe in recipes]
    order = [unit for unit in FINE_TO_COARSE if unit in units]
    if not recipes or (len(recipes) > 1 and units != order):
        raise MethodError(
            f"progressive reconstruction needs units of {', '.join(FINE_TO_COARSE)}, in this order, each "
            f"once; got {', '.join(units) or 'none'}",
            parameter="unit",
        )
    for recipe in recipes:
        recipe.check(structure, images)
        if len(recipes) > 1:
            _check_alone(recipe)


def _check_alone(recipe: Recipe) -> None:
    """Refuse what a unit that is trained several times, alone, cannot have."""
    further = [
        type(loss).__name__
        for loss in recipe.losses
        if loss.of_model or loss.needs_importance or loss.needs_features
    ]
    if further or recipe.holdout > 0 or recipe.rule is not None:
        what = ", ".join(further) or ("holdout" if recipe.holdout > 0 else "a rule of ranges")
        raise MethodError(
            f"units that are trained from fine to coarse cannot have {what}; use one granularity",
            parameter="unit",
        )
    if recipe.quantize_weights:
        replace(recipe, keep_open=True).check_open()


def reconstruct_progressively(
    model: QuantizedModel,
    calibration: Calibration,
    recipes: Sequence[Recipe],
    progress: CalibrationProgress | None = None,
    teacher: QuantizedModel | None = None,
) -> None:
    """Train every coarse unit's parts first, each part's parts before it, then the unit itself from there.

    Weights stay in floating point, as trained, from one granularity to the next, and so do the other trained
    quantities. A unit is begun when all before it is finished, so what it is trained on does not change any
    more. What is the same unit at several granularities (patch embedding, merging, head) is trained once, by
    the finest one's recipe. One recipe alone is `engine.reconstruct`. Each granularity holds two
    activations of all images more.

    Source: Ding et al., Neural Networks 2025 (from the abstract); the order is this project's reading.

    Args:
        model: the wrapped model, its quantizers calibrated; it ends with its weights as codes, unless the
            recipes say otherwise.
        calibration: the images; batches of every granularity are drawn by its seed.
        recipes: from fine to coarse, one for each granularity.
        progress: called after every iteration with all units' iterations and the unit's name.
        teacher: as in `engine.reconstruct`.

    Raises:
        MethodError: see `check_progression` and `activations.allocate`.
    """
    check_progression(recipes, model.structure, calibration.n_images)
    if len(recipes) == 1:
        Engine(model, calibration, recipes[0], progress, teacher).run()
        return
    if teacher is None:
        # What one granularity trains must not give the targets of the next.
        model.activate(weights=False, activations=False)
        teacher = copy.deepcopy(model)
    _Progression(model, calibration, recipes, progress, teacher).run()
    for segment in model.structure.segments:
        finish(segment, recipes[-1])


@dataclass(frozen=True)
class _Node:
    """A unit at one granularity, and its parts at the finer ones.

    Attributes:
        level: number of the granularity that trains it.
        step, exact: the unit, and the one that gives its target.
        parts: trained before it.
    """

    level: int
    step: Step
    exact: Step
    parts: tuple[_Node, ...]

    def all(self) -> Iterator[_Node]:
        """Yield it and all below it."""
        yield self
        for part in self.parts:
            yield from part.all()


class _Progression:
    """One way through the model."""

    def __init__(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        recipes: Sequence[Recipe],
        progress: CalibrationProgress | None,
        teacher: QuantizedModel,
    ) -> None:
        self._progress = progress
        self._engines = [
            Engine(
                model,
                calibration,
                replace(recipe, keep_open=recipe.quantize_weights),
                self._told(level),
                teacher,
            )
            for level, recipe in enumerate(recipes)
        ]
        top = len(recipes) - 1
        coarsest = self._engines[top]
        for engine in self._engines:
            engine.streams = coarsest.streams  # one copy of the images is enough
        pairs = zip(coarsest.steps, coarsest.teachers, strict=True)
        self._nodes = [self._node(top, step, exact) for step, exact in pairs]
        self._done = [0] * len(recipes)
        self._total = sum(
            count_of([each.step], recipes[each.level]) * recipes[each.level].iterations
            for node in self._nodes
            for each in node.all()
        )

    def run(self) -> None:
        """Go through the coarsest units in execution order."""
        streams = self._engines[-1].streams
        for node in self._nodes:
            streams = self._through(node, streams)
        if self._progress is not None:
            self._progress(self._total, self._total, "")

    def _through(self, node: _Node, streams: Streams) -> Streams:
        """Train a unit's parts, then the unit, on the same activations in front of it."""
        inside = streams
        for part in node.parts:
            inside = self._through(part, inside)
        return self._engines[node.level].advance(node.step, node.exact, streams)

    def _node(self, level: int, step: Step, exact: Step) -> _Node:
        finer = self._engines[level - 1] if level > 0 else None
        if finer is None or (finer.recipe.unit == "layer" and step.unit.kind != "block"):
            return _Node(level, step, exact, ())
        if finer.recipe.unit == "layer":
            # The engine takes the layers of a unit one by one.
            return _Node(level, step, exact, (_Node(level - 1, step, exact, ()),))
        inside = set(step.unit.operations)
        found = [
            (own, its)
            for own, its in zip(finer.steps, finer.teachers, strict=True)
            if inside.issuperset(own.unit.operations)
        ]
        if len(found) == 1:
            return self._node(level - 1, *found[0])
        parts = tuple(self._node(level - 1, own, its) for own, its in found)
        return _Node(level, step, exact, parts)

    def _told(self, level: int) -> CalibrationProgress | None:
        """The progress of one granularity, told as a part of all of them."""
        whole = self._progress
        if whole is None:
            return None

        def told(done: int, total: int, stage: str = "") -> None:
            self._done[level] = done
            whole(sum(self._done), self._total, stage)

        return told
