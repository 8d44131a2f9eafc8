"""The engine: units one after the other, two streams of activations, one loop."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from methods.quantization.calibration import Calibration, Progress
from methods.quantization.layers import QuantMatMul, QuantOperation, WeightedOperation
from methods.quantization.model import QuantizedModel, Segment
from methods.quantization.quantizers import UniformQuantizer
from methods.quantization.reconstruction.learned import (
    Learn,
    LearnedOffset,
    LearnedRounding,
    LearnedStep,
    LearnedWeight,
)
from methods.quantization.reconstruction.terms import Batch, BlockError, LogitDivergence, Term

logger = logging.getLogger(__name__)

INNER_ROLES = ("qkv", "context", "proj", "fc1", "fc2", "reduction")
"""Operations whose outputs the local term compares."""

FORWARD_BATCH = 64
"""Images per pass when a stream moves on to the next unit."""


@dataclass(frozen=True)
class Recipe:
    """How units are reconstructed.

    Attributes:
        terms: the loss; each is divided by its value in the unit's first iteration if ``normalise``,
            else all by the block error's.
        iterations: per unit.
        batch_size: images per iteration.
        learn: ``rounding`` (AdaRound) or ``weights`` (straight-through).
        weight_rate: Adam's learning rate of roundings, or of weights (then with a cosine to 0).
        step_rate: learning rate of activation steps, cosine to 0; 0 leaves them as calibrated.
        input_mix: probability that an input value comes from the quantized prefix, else it is the
            full-precision model's (QDrop: 0.5, BRECQ: 0).
        keep: probability that an activation inside the unit is quantized while learning.
        rounding_weight: weight of the rounding regulariser.
        warmup: share of the iterations without it.
        normalise: divide each term by its own first value.
    """

    terms: Sequence[Term] = (BlockError(),)
    iterations: int = 2000
    batch_size: int = 32
    learn: Learn = "rounding"
    weight_rate: float = 1e-3
    step_rate: float = 4e-5
    input_mix: float = 0.5
    keep: float = 0.5
    rounding_weight: float = 0.01
    warmup: float = 0.2
    normalise: bool = True


@dataclass
class Streams:
    """Activations in front of the current unit, for all calibration images."""

    exact: Tensor
    quantized: Tensor
    logits: Tensor


def reconstruct(
    model: QuantizedModel,
    calibration: Calibration,
    recipe: Recipe,
    progress: Progress | None = None,
) -> None:
    """Learn roundings (or weights) and steps of every unit, in execution order.

    Quantizers must be calibrated. Units behind the current one stay in full precision until it is
    their turn; the memory held is two activations and a target, however many units there are.

    Args:
        model: the wrapped model; it ends with its weights as codes.
        calibration: the images; their random generator decides batches, mixes and drops.
        recipe: how.
        progress: called after every iteration with all units' iterations.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(calibration.seed)
    model.activate(weights=False, activations=False)
    images = calibration.whole()
    segments = model.structure.segments
    streams = Streams(images, images, _all(model, images))
    for index, segment in enumerate(segments):
        target = _all(segment.run, streams.exact)
        rest = partial(_run_all, segments[index + 1 :])
        unit = Unit(segment, generator)
        done = index * recipe.iterations
        total = len(segments) * recipe.iterations
        _learn(unit, streams, target, rest, recipe, generator, _counting(progress, done, total))
        unit.finish()
        streams = Streams(target, _all(segment.run, streams.quantized), streams.logits)


class Unit:
    """A segment whose quantizers are replaced by learned ones.

    Attributes:
        segment: the segment.
        weights, steps: its learned quantizers.
    """

    def __init__(self, segment: Segment, generator: torch.Generator) -> None:
        self.segment = segment
        self._generator = generator
        self.weights: list[tuple[WeightedOperation, LearnedWeight]] = []
        self.steps: list[LearnedStep] = []
        self._names: list[tuple[nn.Module, str]] = []

    def attach(self, learn: Learn) -> None:
        """Put learned quantizers in the place of the calibrated ones."""
        form = LearnedRounding if learn == "rounding" else LearnedOffset
        for operation in self.segment.operations:
            if isinstance(operation, WeightedOperation):
                inner = operation.weight_quantizer
                if isinstance(inner, UniformQuantizer) and not inner.spec.is_float:
                    learned = form(inner, operation.weight)
                    operation.weight_quantizer = learned
                    self.weights.append((operation, learned))
            for name in _activation_names(operation):
                self._attach_step(operation, name)

    def _attach_step(self, operation: QuantOperation, name: str) -> None:
        inner = getattr(operation, name)
        if not inner.spec.is_float:
            learned = LearnedStep(inner, self._generator)
            setattr(operation, name, learned)
            self.steps.append(learned)
            self._names.append((operation, name))

    def switch(self, on: bool) -> None:
        """Switch all learned quantizers on or off (full precision)."""
        for quantizer in (*(learned for _, learned in self.weights), *self.steps):
            quantizer.active = on

    def keep(self, probability: float) -> None:
        """Set the probability that an activation is quantized."""
        for step in self.steps:
            step.keep = probability

    def detach(self, accept: bool) -> None:
        """Put the calibrated quantizers back, with what was learned if ``accept``."""
        for operation, learned in self.weights:
            operation.weight_quantizer = learned.inner
            if accept:
                operation.set_codes(learned.codes(operation.weight))
        for (place, name), step in zip(self._names, self.steps, strict=True):
            if not accept:
                step.step = None
            setattr(place, name, step.finish())
        self.weights, self.steps, self._names = [], [], []

    def finish(self) -> None:
        """Leave the segment fully quantized."""
        for operation in self.segment.operations:
            for quantizer in operation.quantizers().values():
                quantizer.active = True
            if isinstance(operation, WeightedOperation):
                operation.freeze()


def _activation_names(operation: QuantOperation) -> tuple[str, ...]:
    if isinstance(operation, QuantMatMul):
        return "first_quantizer", "second_quantizer"
    return ("input_quantizer",)


def _learn(
    unit: Unit,
    streams: Streams,
    target: Tensor,
    rest: Callable[[Tensor], Tensor],
    recipe: Recipe,
    generator: torch.Generator,
    tick: Progress,
) -> None:
    """Run the loop of one unit; what it has learned is kept unless its loss is not finite."""
    unit.attach(recipe.learn)
    if not unit.weights and not unit.steps:
        return
    loop = _Loop(unit, streams, target, rest, recipe, generator)
    accept = True
    with torch.enable_grad():
        for iteration in range(recipe.iterations):
            if not loop.step(iteration):
                accept = False
                logger.warning(
                    "%s: the loss was not finite in iteration %d; the unit keeps its calibrated "
                    "quantizers; try a lower learning rate",
                    unit.segment.name,
                    iteration,
                )
                break
            tick(iteration + 1, recipe.iterations)
    unit.detach(accept)


class _Loop:
    """The iterations of one unit."""

    def __init__(
        self,
        unit: Unit,
        streams: Streams,
        target: Tensor,
        rest: Callable[[Tensor], Tensor],
        recipe: Recipe,
        generator: torch.Generator,
    ) -> None:
        self._unit, self._streams, self._target, self._rest = unit, streams, target, rest
        self._recipe, self._generator = recipe, generator
        self._terms = _terms_of(unit.segment, recipe.terms)
        self._first: list[Tensor] = []
        weights = [p for _, learned in unit.weights for p in learned.parameters()]
        steps = [s.step for s in unit.steps if s.step is not None] if recipe.step_rate > 0 else []
        groups = [
            {"params": weights, "lr": recipe.weight_rate, "cosine": recipe.learn == "weights"},
            {"params": steps, "lr": recipe.step_rate, "cosine": True},
        ]
        groups = [group for group in groups if group["params"]]
        self._rates = [cast(float, group["lr"]) for group in groups]
        self._optimizer = torch.optim.Adam(groups) if groups else None

    def step(self, iteration: int) -> bool:
        """One iteration; False if the loss is not finite."""
        if self._optimizer is None:
            return True
        share = iteration / self._recipe.iterations
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (0.5 * (1 + math.cos(math.pi * share)) if group["cosine"] else 1)
        loss = self._loss(share)
        if not bool(torch.isfinite(loss)):
            return False
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return True

    def _loss(self, share: float) -> Tensor:
        values = [term(batch) for batch in [self._batch()] for term in self._terms]
        if not self._first:
            self._first = [
                v.detach().clamp_min(t.floor) for v, t in zip(values, self._terms, strict=True)
            ]
        first = self._first if self._recipe.normalise else self._first[:1] * len(values)
        # The factor 2 over the first value makes the regulariser's weight mean the same everywhere.
        terms = zip(self._terms, values, first, strict=True)
        loss = sum((2 * t.weight * v / f for t, v, f in terms), start=values[0].new_zeros(()))
        return loss + self._regulariser(share)

    def _regulariser(self, share: float) -> Tensor:
        recipe = self._recipe
        zero = self._target.new_zeros(())
        if share < recipe.warmup:
            return zero
        exponent = 20 - 18 * (share - recipe.warmup) / (1 - recipe.warmup)
        penalties = [learned.regulariser(exponent) for _, learned in self._unit.weights]
        return recipe.rounding_weight * sum(penalties, start=zero)

    def _batch(self) -> Batch:
        recipe, unit, streams = self._recipe, self._unit, self._streams
        images = len(self._target)
        order = torch.randperm(images, generator=self._generator, device=self._target.device)
        chosen = order[: recipe.batch_size]
        exact, quantized = streams.exact[chosen], streams.quantized[chosen]
        inner: dict[str, Tensor] = {}
        inner_target: dict[str, Tensor] = {}
        if any(term.needs_inner for term in self._terms):
            unit.switch(False)
            with torch.no_grad():
                _run_watched(unit.segment, exact, inner_target, 1.0)
            unit.switch(True)
        mixed = _mix(exact, quantized, recipe.input_mix, self._generator)
        clean_wanted = any(term.needs_clean for term in self._terms)
        unit.keep(recipe.keep)
        inputs = torch.cat([mixed, quantized]) if clean_wanted else mixed
        output = _run_watched(unit.segment, inputs, inner, len(mixed) / len(inputs))
        return Batch(
            output=output[: len(mixed)],
            target=self._target[chosen],
            clean=output[len(mixed) :] if clean_wanted else None,
            rest=self._rest,
            logits=streams.logits[chosen],
            inner=inner,
            inner_target=inner_target,
        )


def _terms_of(segment: Segment, terms: Sequence[Term]) -> list[Term]:
    """The terms that count in a segment: the head gives the logits, so KL on them alone."""
    if segment.kind == "head":
        return [LogitDivergence()]
    inner = [op for op in segment.operations if op.role in INNER_ROLES]
    return [t for t in terms if t.weight > 0 and (inner or not t.needs_inner)]


def _mix(exact: Tensor, quantized: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Take each value from ``quantized`` with probability ``share``, else from ``exact``."""
    if share <= 0:
        return exact
    if share >= 1:
        return quantized
    chosen = torch.rand(exact.shape, generator=generator, device=exact.device) < share
    return torch.where(chosen, quantized, exact)


def _run_watched(segment: Segment, x: Tensor, outputs: dict[str, Tensor], share: float) -> Tensor:
    """Run a segment and collect the first ``share`` of the outputs of its inner operations."""

    def watch(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, QuantOperation)
        outputs[module.name] = output[: round(len(output) * share)]

    with ExitStack() as stack:
        for operation in segment.operations:
            if operation.role in INNER_ROLES:
                stack.callback(operation.register_forward_hook(watch).remove)
        return segment.run(x)


@torch.no_grad()
def _all(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([run(part) for part in x.split(FORWARD_BATCH)])


def _run_all(segments: Sequence[Segment], x: Tensor) -> Tensor:
    for segment in segments:
        x = segment.run(x)
    return x


def _counting(progress: Progress | None, done: int, total: int) -> Progress:
    def tick(iteration: int, _: int) -> None:
        if progress is not None:
            progress(done + iteration, total)

    return tick
