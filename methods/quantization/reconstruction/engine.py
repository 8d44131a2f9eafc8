"""The engine: units one after the other, two streams of activations, one loop."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from methods.errors import MethodError, is_out_of_memory
from methods.quantization.calibration import Calibration, Progress, Rule, calibrate_sites
from methods.quantization.capture import fisher_loss
from methods.quantization.layers import QuantOperation, WeightedOperation
from methods.quantization.model import QuantizedModel, Segment, Structure, sites_of
from methods.quantization.reconstruction.caches import FORWARD_BATCH, send_through, take
from methods.quantization.reconstruction.learnables import (
    Attachment,
    Learnable,
    Roundings,
    Steps,
    Unit,
)
from methods.quantization.reconstruction.terms import Batch, BlockError, LogitDivergence, Term
from methods.quantization.reconstruction.units import Granularity, run_all, units_of

logger = logging.getLogger(__name__)

INNER_ROLES = ("qkv", "context", "proj", "fc1", "fc2", "reduction")
"""Operations whose outputs the local term compares."""

MOMENTUM = 0.95
"""Of the running means of ``weighting = "running"`` (LRQuant+)."""

Weighting = Literal["first", "shared", "running", "plain"]


@dataclass(frozen=True)
class Recipe:
    """How units are reconstructed.

    Attributes:
        terms: the loss.
        learnables: what is learned, in the order in which it is put into a unit.
        unit: what is reconstructed at once.
        iterations: per unit.
        batch_size: images per iteration.
        input_mix: probability that an input value comes from the quantized prefix, else it is the
            full-precision model's (QDrop: 0.5, BRECQ: 0).
        keep: probability that an activation inside the unit is quantized while learning.
        weighting: ``first``: each term is divided by its value in the unit's first iteration and
            doubled; ``shared``: all terms by the first term's; ``running``: each by its running mean;
            ``plain``: as they are.
        rounding_weight: weight of the rounding regulariser.
        warmup: share of the iterations without it.
        rule: calibrates the unit's static activations once it is learned; None: they are.
    """

    terms: Sequence[Term] = (BlockError(),)
    learnables: Sequence[Learnable] = (Roundings(), Steps())
    unit: Granularity = "block"
    iterations: int = 2000
    batch_size: int = 32
    input_mix: float = 0.5
    keep: float = 0.5
    weighting: Weighting = "first"
    rounding_weight: float = 0.01
    warmup: float = 0.2
    rule: Rule | None = None

    def check(self, structure: Structure, images: int) -> None:
        """Refuse what cannot work before any work is done.

        Raises:
            MethodError: too few images, a setting out of range, or terms that the units cannot give.
        """
        if self.iterations < 0 or self.batch_size < 1:
            raise MethodError("reconstruction needs iterations >= 0 and batch_size >= 1")
        if images < self.batch_size:
            raise MethodError(
                f"reconstruction in batches of {self.batch_size} images needs at least as many "
                f"calibration images, got {images}; use more images or a smaller batch_size"
            )
        if self.unit == "layer":
            wide = [t for t in self.terms if t.needs_clean or t.needs_inner or t.needs_importance]
            if wide:
                names = ", ".join(type(term).__name__ for term in wide)
                raise MethodError(f"units of one layer cannot give {names}; use another unit")
        if any(term.needs_inner for term in self.terms):
            for segment in structure.segments:
                if segment.kind == "block" and not _inner(segment):
                    raise MethodError(
                        f"{segment.name} has none of the layers {', '.join(INNER_ROLES)} "
                        "whose outputs the local term compares"
                    )


@dataclass
class Streams:
    """Activations in front of the current unit, for all calibration images, and the logits behind all."""

    exact: Tensor
    quantized: Tensor
    logits: Tensor


def reconstruct(
    model: QuantizedModel,
    calibration: Calibration,
    recipe: Recipe,
    progress: Progress | None = None,
) -> None:
    """Learn what the recipe says in every unit, in execution order.

    Quantizers must be calibrated (or `Recipe.rule` does it). Units behind the current one stay in full
    precision until it is their turn; the memory held is four activations, however many units there
    are (see `caches`).

    Args:
        model: the wrapped model; it ends with its weights as codes.
        calibration: the images; their random generator decides batches, mixes and drops.
        recipe: how.
        progress: called after every iteration with all units' iterations and the unit's name.

    Raises:
        MethodError: see `Recipe.check` and `caches.allocate`.
    """
    recipe.check(model.structure, calibration.n_images)
    _Engine(model, calibration, recipe, progress).run()


class _Engine:
    """One reconstruction."""

    def __init__(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        recipe: Recipe,
        progress: Progress | None,
    ) -> None:
        self._structure, self._device = model.structure, model.device
        self._recipe, self._progress = recipe, progress
        self._generator = torch.Generator(self._device).manual_seed(calibration.seed)
        # Labels are drawn apart: what a term draws must not move the batches.
        self._labels = calibration.generator()
        model.activate(weights=False, activations=False)
        self._units = units_of(model.structure, recipe.unit)
        self._done, self._total = 0, _count(self._units, recipe) * recipe.iterations
        images = calibration.whole()
        self._streams = Streams(images, images, send_through(model, images, self._device))

    def run(self) -> None:
        for index, segment in enumerate(self._units):
            streams = self._streams
            target = send_through(segment.run, streams.exact, self._device)
            rest = partial(run_all, self._units[index + 1 :])
            if self._recipe.unit == "layer" and segment.kind == "block":
                self._learn_layers(segment)
            else:
                self._learn(segment, streams, target, rest)
            _finish(segment)
            quantized = send_through(segment.run, streams.quantized, self._device)
            self._streams = Streams(target, quantized, streams.logits)
        if self._progress is not None:
            self._progress(self._total, self._total, "")

    def _learn_layers(self, segment: Segment) -> None:
        """Take a block layer by layer, each on what the layers before it now give."""
        streams, device = self._streams, self._device
        layers = [op for op in segment.operations if isinstance(op, WeightedOperation)]
        exact = {op.name: _input_of(op, segment, streams.exact, device) for op in layers}
        for operation in segment.operations:
            if not isinstance(operation, WeightedOperation):
                _switch_on(operation)
                continue
            alone = Segment(operation.name, "layer", operation, (operation,), segment.stage)
            own = Streams(
                exact.pop(operation.name),
                _input_of(operation, segment, streams.quantized, device),
                streams.logits,
            )
            self._learn(alone, own, send_through(alone.run, own.exact, device), alone.run)
            _finish(alone)

    def _learn(
        self, segment: Segment, streams: Streams, target: Tensor, rest: Callable[[Tensor], Tensor]
    ) -> None:
        """Learn one unit, with half the batch as long as memory does not suffice."""
        size = self._recipe.batch_size
        while True:
            try:
                self._attempt(segment, streams, target, rest, size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size //= 2
                logger.warning(
                    "%s: out of memory; goes on with batches of %d images", segment.name, size
                )
        self._done += self._recipe.iterations
        if self._recipe.rule is not None:
            _calibrate(segment, streams.quantized, self._recipe.rule, self._device)

    def _attempt(
        self,
        segment: Segment,
        streams: Streams,
        target: Tensor,
        rest: Callable[[Tensor], Tensor],
        batch_size: int,
    ) -> None:
        recipe = self._recipe
        unit = Unit(segment, self._structure, streams.exact, streams.quantized, self._generator)
        terms = _terms_of(segment, recipe.terms)
        data = _Data(streams, target, rest, recipe, batch_size, self._generator, self._device)
        if any(term.needs_importance for term in terms):
            data.importance = _importance(target, rest, self._labels, self._device)
        attached: list[tuple[Learnable, Attachment]] = []
        accept = False
        try:
            for learnable in recipe.learnables:
                attached += [(learnable, place) for place in learnable.attach(unit)]
            accept = _Loop(segment, attached, terms, data, recipe).run(self._tick)
        finally:
            for _, attachment in reversed(attached):
                attachment.detach(accept)

    def _tick(self, iteration: int, name: str) -> None:
        if self._progress is not None:
            self._progress(self._done + iteration, self._total, name)


def _count(units: Sequence[Segment], recipe: Recipe) -> int:
    """How many times the loop runs."""
    if recipe.unit != "layer":
        return len(units)
    layers = [
        sum(isinstance(op, WeightedOperation) for op in unit.operations)
        if unit.kind == "block"
        else 1
        for unit in units
    ]
    return sum(layers)


def _switch_on(operation: QuantOperation) -> None:
    for quantizer in operation.quantizers().values():
        quantizer.active = True


def _finish(segment: Segment) -> None:
    """Leave a segment fully quantized."""
    for operation in segment.operations:
        _switch_on(operation)
        if isinstance(operation, WeightedOperation):
            operation.freeze()


def _calibrate(segment: Segment, x: Tensor, rule: Rule, device: torch.device) -> None:
    """Calibrate the static activations of a learned unit on its quantized input, one by one."""
    _finish_weights(segment)
    sites = list(sites_of(segment.operations))
    for site in sites:
        site.quantizer.active = site.is_weight
    # Ranges are exact only over all images at once, and one unit's activations are not large.
    calibrate_sites(sites, lambda: segment.run(x.to(device)), rule, sequential=True)


def _finish_weights(segment: Segment) -> None:
    for operation in segment.operations:
        if isinstance(operation, WeightedOperation):
            operation.weight_quantizer.active = True
            operation.freeze()


class _Stop(Exception):
    """Ends a pass once what it was for has been seen."""


def _input_of(
    operation: WeightedOperation, segment: Segment, x: Tensor, device: torch.device
) -> Tensor:
    """Input of one operation inside a segment, for all images; images stay the first dimension."""

    def run(images: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])
            raise _Stop

        handle = operation.register_forward_pre_hook(stop)
        try:
            segment.run(images)
        except _Stop:
            pass
        finally:
            handle.remove()
        # Windows of Swin: [images * windows, N, C] -> [images, windows, N, C].
        return seen[0].unflatten(0, (len(images), -1))

    return send_through(run, x, device)


def _importance(
    target: Tensor,
    rest: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Squared Fisher gradient at the unit's output of every image, divided by the mean."""
    parts = []
    for start in range(0, len(target), FORWARD_BATCH):
        output = target[start : start + FORWARD_BATCH].to(device).requires_grad_()
        with torch.enable_grad():
            loss = fisher_loss(rest(output), generator)
        parts.append(torch.autograd.grad(loss, output)[0].square().to(target.device))
    squares = torch.cat(parts)
    return squares / squares.mean().clamp_min(torch.finfo(squares.dtype).tiny)


@dataclass
class _Data:
    """What the iterations of one unit draw from."""

    streams: Streams
    target: Tensor
    rest: Callable[[Tensor], Tensor]
    recipe: Recipe
    batch_size: int
    generator: torch.Generator
    device: torch.device
    importance: Tensor | None = None

    def draw(self) -> Tensor:
        """Return the images of the next batch."""
        order = torch.randperm(len(self.target), generator=self.generator, device=self.device)
        return order[: self.batch_size]


@dataclass
class _Scales:
    """What each term is divided by."""

    weighting: Weighting
    values: dict[int, Tensor] = field(default_factory=dict)

    def weighted(self, index: int, term: Term, value: Tensor) -> Tensor:
        """Return the term's share of the loss."""
        detached = value.detach()
        if self.weighting == "plain":
            return term.weight * value
        if self.weighting == "running":
            before = self.values.get(index, torch.ones_like(detached))
            self.values[index] = MOMENTUM * before + (1 - MOMENTUM) * detached
            return term.weight * value / (self.values[index] + 1e-6)
        key = index if self.weighting == "first" else 0
        first = self.values.setdefault(key, detached.clamp_min(term.floor))
        # The factor 2 over the first value makes the regulariser's weight mean the same everywhere.
        return 2 * term.weight * value / first


class _Loop:
    """The iterations of one unit."""

    def __init__(
        self,
        segment: Segment,
        attached: Sequence[tuple[Learnable, Attachment]],
        terms: Sequence[Term],
        data: _Data,
        recipe: Recipe,
    ) -> None:
        self._segment, self._terms, self._data, self._recipe = segment, terms, data, recipe
        self._places = [place for _, place in attached]
        self._scales = _Scales(recipe.weighting)
        self._rates: list[tuple[float, bool]] = []
        groups = []
        for learnable in recipe.learnables:
            own = [p for kind, place in attached if kind is learnable for p in place.parameters()]
            if own and learnable.rate > 0:
                groups.append({"params": own})
                self._rates.append((learnable.rate, learnable.cosine))
        self._optimizer = torch.optim.Adam(groups) if groups else None

    def run(self, tick: Callable[[int, str], None]) -> bool:
        """Run all iterations; False if a loss was not finite."""
        if self._optimizer is None:
            return True
        with torch.enable_grad():
            for iteration in range(self._recipe.iterations):
                if not self._step(iteration, self._optimizer):
                    logger.warning(
                        "%s: the loss was not finite in iteration %d; the unit keeps its calibrated "
                        "quantizers; try a lower learning rate",
                        self._segment.name,
                        iteration,
                    )
                    return False
                tick(iteration + 1, self._segment.name)
        return True

    def _step(self, iteration: int, optimizer: torch.optim.Optimizer) -> bool:
        share = iteration / self._recipe.iterations
        for group, (rate, cosine) in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (0.5 * (1 + math.cos(math.pi * share)) if cosine else 1)
        loss = self._loss(iteration, share)
        if not bool(torch.isfinite(loss)):
            return False
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return True

    def _loss(self, iteration: int, share: float) -> Tensor:
        due = [(i, t) for i, t in enumerate(self._terms) if iteration % t.every == 0]
        batch = self._batch([term for _, term in due])
        parts = [term.every * self._scales.weighted(i, term, term(batch)) for i, term in due]
        penalties = self._penalties(share)
        return torch.stack([part.reshape(()) for part in (*parts, *penalties)]).sum()

    def _penalties(self, share: float) -> list[Tensor]:
        recipe = self._recipe
        if share < recipe.warmup:
            return []
        exponent = 20 - 18 * (share - recipe.warmup) / (1 - recipe.warmup)
        found = [place.regulariser(exponent) for place in self._places]
        return [recipe.rounding_weight * penalty for penalty in found if penalty is not None]

    def _batch(self, terms: Sequence[Term]) -> Batch:
        data, streams, device = self._data, self._data.streams, self._data.device
        chosen = data.draw()
        exact = take(streams.exact, chosen, device)
        quantized = take(streams.quantized, chosen, device)
        inner: dict[str, Tensor] = {}
        inner_target: dict[str, Tensor] = {}
        if any(term.needs_inner for term in terms):
            self._in_full_precision(exact, inner_target)
        homologous = None
        if any(term.needs_homologous for term in terms):
            homologous = self._in_full_precision(quantized, {})
        mixed = _mix(exact, quantized, self._recipe.input_mix, data.generator)
        clean_wanted = any(term.needs_clean for term in terms)
        inputs = torch.cat([mixed, quantized]) if clean_wanted else mixed
        for place in self._places:
            place.keep(self._recipe.keep)
        output = _run_watched(self._segment, inputs, inner, len(mixed) / len(inputs))
        importance = None if data.importance is None else take(data.importance, chosen, device)
        return Batch(
            output=output[: len(mixed)],
            target=take(data.target, chosen, device),
            clean=output[len(mixed) :] if clean_wanted else None,
            rest=data.rest,
            logits=take(streams.logits, chosen, device),
            inner=inner,
            inner_target=inner_target,
            importance=importance,
            homologous=homologous,
        )

    @torch.no_grad()
    def _in_full_precision(self, x: Tensor, inner: dict[str, Tensor]) -> Tensor:
        for place in self._places:
            place.switch(False)
        output = _run_watched(self._segment, x, inner, 1.0)
        for place in self._places:
            place.switch(True)
        return output


def _inner(segment: Segment) -> list[QuantOperation]:
    return [op for op in segment.operations if op.role in INNER_ROLES]


def _terms_of(segment: Segment, terms: Sequence[Term]) -> list[Term]:
    """The terms that count in a segment: the head gives the logits, so KL on them alone."""
    if segment.kind == "head":
        return [LogitDivergence()]
    inner = _inner(segment)
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
        for operation in _inner(segment):
            stack.callback(operation.register_forward_hook(watch).remove)
        return segment.run(x)
