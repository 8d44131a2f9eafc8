"""The iterations of one unit: batches, losses, and one optimizer over all that is trained."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.activations import (
    batches,
    take,
    take_output,
)
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.structure import Output, Segment
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY, choose
from vit_ptq_bench.methods.quantization.reconstruction.choices import Weighting
from vit_ptq_bench.methods.quantization.reconstruction.holdout import Judge
from vit_ptq_bench.methods.quantization.reconstruction.losses import Batch, Loss
from vit_ptq_bench.methods.quantization.reconstruction.probe import Probe
from vit_ptq_bench.methods.quantization.reconstruction.recipe import Recipe, inner_operations
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Attachment, Trainable

logger = logging.getLogger(__name__)

MOMENTUM = 0.95
"""Of the running means of ``weighting = "running"`` (LRQuant+)."""


class Rest(Protocol):
    """The rest of the model behind a unit, in full precision."""

    def __call__(self, x: Tensor, chosen: Tensor) -> Output:
        """Return the prediction for a unit's output ``x`` of the calibration images ``chosen`` ([b])."""


@dataclass
class Streams:
    """Activations in front of the current unit, for all calibration images, and what is behind all.

    Attributes:
        exact, quantized: inputs of the unit, from the full-precision and the quantized prefix.
        prediction: the full-precision model's.
        features: its penultimate feature, if a loss asks for it.
    """

    exact: Tensor
    quantized: Tensor
    prediction: Output
    features: Output | None = None


@dataclass
class Data:
    """The activations and settings that the iterations of one unit draw batches from.

    Attributes:
        streams, target: inputs and full-precision output of the unit.
        rest: what lies behind the unit.
        recipe: of the reconstruction.
        batch_size: images per iteration.
        generator: of batches, mixes and drops.
        device: where all is computed.
        importance: see `Batch.importance`.
        features_of: the penultimate feature for the unit's output, if a loss asks for it.
        teacher: the unit in full precision, where it is a part of another model.
        trained, held: numbers of the images to train on and to judge by; None and empty: all and none.
    """

    streams: Streams
    target: Tensor
    rest: Rest
    recipe: Recipe
    batch_size: int
    generator: torch.Generator
    device: torch.device
    importance: Tensor | None = None
    features_of: Rest | None = None
    teacher: Segment | None = None
    trained: Tensor | None = None
    held: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def draw(self) -> Tensor:
        """Return the images of the next batch."""
        count = len(self.target) if self.trained is None else len(self.trained)
        order = torch.randperm(count, generator=self.generator, device=self.device)
        chosen = order[: self.batch_size]
        return chosen if self.trained is None else self.trained[chosen]

    def parts(self, images: Tensor | None) -> list[Tensor]:
        """Return the numbers of the images ``images`` (None: all), those of one pass each."""
        if images is None:
            images = torch.arange(len(self.target), device=self.device)
        size = max(1, batches(self.target)[0].stop)
        return list(torch.split(images, size))


@dataclass
class _Scales:
    """The values that losses are divided by."""

    weighting: Weighting
    values: dict[int, Tensor] = field(default_factory=dict)

    def forget(self, index: int) -> None:
        """Let the next value of a loss count as its first."""
        self.values.pop(index, None)

    def weighted(self, index: int, loss: Loss, value: Tensor) -> Tensor:
        """Return what the loss adds to the sum of all losses."""
        detached = value.detach()
        if self.weighting == "plain":
            return loss.weight * value
        if self.weighting == "running":
            before = self.values.get(index, torch.ones_like(detached))
            self.values[index] = MOMENTUM * before + (1 - MOMENTUM) * detached
            return loss.weight * value / (self.values[index] + 1e-6)
        key = index if self.weighting == "first" else 0
        first = self.values.setdefault(key, detached.clamp_min(loss.floor))
        # The factor 2 over the first value makes the regulariser's weight mean the same everywhere.
        return 2 * loss.weight * value / first


Outcome = Literal["trained", "start", "failed"]
"""How a unit ended: trained; no better on the held-out images than at the start, where what is trained is
back; or with a loss that was not finite."""


class Loop:
    """The iterations of one unit."""

    def __init__(
        self,
        segment: Segment,
        attached: Sequence[tuple[Trainable, Attachment]],
        losses: Sequence[Loss],
        data: Data,
        recipe: Recipe,
    ) -> None:
        self._segment, self._losses, self._data, self._recipe = segment, list(losses), data, recipe
        self._places = [place for _, place in attached]
        self._scales = _Scales(recipe.weighting)
        self._rates: list[tuple[float, bool]] = []
        groups = []
        for trainable in recipe.trainables:
            own = [p for kind, place in attached if kind is trainable for p in place.parameters()]
            if own and trainable.rate > 0:
                groups.append({"params": own})
                self._rates.append((trainable.rate, trainable.cosine))
        self._optimizer = torch.optim.Adam(groups) if groups else None

    def run(self, tick: Callable[[int, str], None]) -> Outcome:
        """Run all iterations; see `Outcome`."""
        still = self._segment.kind in self._recipe.untrained
        if self._optimizer is None or self._recipe.iterations == 0 or still:
            return "trained"
        self._refresh(0)
        judge = self._judge() if len(self._data.held) else None
        with torch.enable_grad():
            for iteration in range(self._recipe.iterations):
                self._refresh(iteration)
                if not self._step(iteration, self._optimizer):
                    logger.warning(
                        "%s: the loss was not finite in iteration %d; the unit keeps its calibrated "
                        "quantizers; try a lower learning rate",
                        self._segment.name,
                        iteration,
                    )
                    return "failed"
                if judge is not None:
                    judge.look(iteration + 1, self._recipe.iterations)
                tick(iteration + 1, self._segment.name)
        return "trained" if judge is None or judge.settle() else "start"

    def _refresh(self, iteration: int) -> None:
        """Let losses look at the unit as it is now where that is due; it has been at the start already."""
        for index, loss in enumerate(self._losses):
            every = max(1, self._recipe.iterations // loss.refreshes) if loss.refreshes > 1 else 0
            due = loss.is_measured if iteration == 0 else every and iteration % every == 0
            if due:
                self._losses[index] = loss.measured(self._probe())
                self._scales.forget(index)

    def _probe(self) -> Probe:
        data = self._data
        return Probe(
            run=self._segment.run,
            exact=data.streams.exact,
            quantized=data.streams.quantized,
            target=data.target,
            prediction=data.streams.prediction,
            rest=data.rest,
            parts=self._measured_parts(),
            drop=self._drop,
            generator=data.generator,
            device=data.device,
        )

    def _measured_parts(self) -> list[Tensor]:
        parts = self._data.parts(self._data.trained)
        if self._recipe.measured_images == 0:
            return parts
        return self._data.parts(torch.cat(parts)[: self._recipe.measured_images])

    def _drop(self, on: bool) -> None:
        for place in self._places:
            place.keep(self._recipe.keep if on else 1.0)

    def _judge(self) -> Judge:
        parameters = [p for place in self._places for p in place.parameters()]
        return Judge(parameters, partial(self._held_loss, list(self._losses), {}))

    @torch.no_grad()
    def _held_loss(self, losses: Sequence[Loss], first: dict[int, float]) -> float:
        """The losses on the held-out images, as the unit will be: no mix, no drops, hard roundings.

        Each is divided by its first value, unless losses count as they are.
        """
        for place in self._places:
            place.settle(True)
        self._drop(False)
        sums = [0.0] * len(losses)
        for chosen in self._data.parts(self._data.held):
            batch = self._batch_of(chosen, losses, mix=1.0)
            sums = [
                a + len(chosen) * float(loss(batch)) for a, loss in zip(sums, losses, strict=True)
            ]
        for place in self._places:
            place.settle(False)
        plain = self._recipe.weighting == "plain"
        for index, value in enumerate(sums):
            first.setdefault(index, 1.0 if plain else max(value, TINY))
        shared = self._recipe.weighting == "shared"
        scales = [first[0 if shared else index] for index in range(len(losses))]
        values = zip(losses, sums, scales, strict=True)
        return sum(loss.weight * value / scale for loss, value, scale in values)

    def _step(self, iteration: int, optimizer: torch.optim.Optimizer) -> bool:
        share = iteration / self._recipe.iterations
        for group, (rate, cosine) in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (0.5 * (1 + math.cos(math.pi * share)) if cosine else 1)
        loss = self._loss(iteration, share)
        if not bool(torch.isfinite(loss)):
            return False
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return True

    def _loss(self, iteration: int, share: float) -> Tensor:
        due = [(i, loss) for i, loss in enumerate(self._losses) if iteration % loss.every == 0]
        self._drop(True)
        batch = self._batch_of(self._data.draw(), [loss for _, loss in due], self._recipe.input_mix)
        parts = [loss.every * self._scales.weighted(i, loss, loss(batch)) for i, loss in due]
        penalties = self._penalties(share)
        return torch.stack([part.reshape(()) for part in (*parts, *penalties)]).sum()

    def _penalties(self, share: float) -> list[Tensor]:
        recipe = self._recipe
        decays = [place.decay() for place in self._places]
        kept = [decay for decay in decays if decay is not None]
        if share < recipe.warmup:
            return kept
        exponent = 20 - 18 * (share - recipe.warmup) / (1 - recipe.warmup)
        found = [place.regulariser(exponent) for place in self._places]
        return [
            *kept,
            *(recipe.rounding_weight * penalty for penalty in found if penalty is not None),
        ]

    def _batch_of(self, chosen: Tensor, losses: Sequence[Loss], mix: float) -> Batch:
        data, streams, device = self._data, self._data.streams, self._data.device
        exact = take(streams.exact, chosen, device)
        quantized = take(streams.quantized, chosen, device)
        inner: dict[str, Tensor] = {}
        inner_target: dict[str, Tensor] = {}
        if any(loss.needs_inner for loss in losses):
            self._in_full_precision(exact, inner_target)
        homologous = None
        if any(loss.needs_homologous for loss in losses):
            homologous = self._in_full_precision(quantized, {})
        mixed = _mix(exact, quantized, mix, data.generator)
        clean_wanted = any(loss.needs_clean for loss in losses)
        inputs = torch.cat([mixed, quantized]) if clean_wanted else mixed
        output = _run_watched(self._segment, inputs, inner, len(mixed) / len(inputs))
        importance = None if data.importance is None else take(data.importance, chosen, device)
        return Batch(
            output=output[: len(mixed)],
            target=take(data.target, chosen, device),
            clean=output[len(mixed) :] if clean_wanted else None,
            rest=partial(data.rest, chosen=chosen),
            prediction=take_output(streams.prediction, chosen, device),
            inner=inner,
            inner_target=inner_target,
            importance=importance,
            homologous=homologous,
            features=None
            if streams.features is None
            else take_output(streams.features, chosen, device),
            features_of=None
            if data.features_of is None
            else partial(data.features_of, chosen=chosen),
        )

    @torch.no_grad()
    def _in_full_precision(self, x: Tensor, inner: dict[str, Tensor]) -> Tensor:
        if self._data.teacher is not None:
            return _run_watched(self._data.teacher, x, inner, 1.0)
        for place in self._places:
            place.switch(False)
        output = _run_watched(self._segment, x, inner, 1.0)
        for place in self._places:
            place.switch(True)
        return output


def _mix(exact: Tensor, quantized: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Take each value from ``quantized`` with probability ``share``, else from ``exact``."""
    if share <= 0:
        return exact
    if share >= 1:
        return quantized
    chosen = torch.rand(exact.shape, generator=generator, device=exact.device).lt_(share)
    return choose(chosen, quantized, exact)


def _run_watched(segment: Segment, x: Tensor, outputs: dict[str, Tensor], share: float) -> Tensor:
    """Run a segment and collect the first ``share`` of the outputs of its inner operations."""

    def watch(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, QuantOperation)
        outputs[module.name] = output[: round(len(output) * share)]

    with ExitStack() as stack:
        for operation in inner_operations(segment):
            stack.callback(operation.register_forward_hook(watch).remove)
        return segment.run(x)
