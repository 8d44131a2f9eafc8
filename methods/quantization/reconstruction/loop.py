"""The iterations of one unit: batches, losses, and one optimizer over all that is trained."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.activations import take, take_output
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.structure import Output, Segment
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import choose
from vit_ptq_bench.methods.quantization.reconstruction.choices import Weighting
from vit_ptq_bench.methods.quantization.reconstruction.losses import Batch, Loss
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
    """Activations in front of the current unit, for all calibration images, and the prediction behind all."""

    exact: Tensor
    quantized: Tensor
    prediction: Output


@dataclass
class Data:
    """The activations and settings that the iterations of one unit draw batches from."""

    streams: Streams
    target: Tensor
    rest: Rest
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
    """The values that losses are divided by."""

    weighting: Weighting
    values: dict[int, Tensor] = field(default_factory=dict)

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
        self._segment, self._losses, self._data, self._recipe = segment, losses, data, recipe
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
        torch.autograd.backward(loss)
        optimizer.step()
        return True

    def _loss(self, iteration: int, share: float) -> Tensor:
        due = [(i, loss) for i, loss in enumerate(self._losses) if iteration % loss.every == 0]
        batch = self._batch([loss for _, loss in due])
        parts = [loss.every * self._scales.weighted(i, loss, loss(batch)) for i, loss in due]
        penalties = self._penalties(share)
        return torch.stack([part.reshape(()) for part in (*parts, *penalties)]).sum()

    def _penalties(self, share: float) -> list[Tensor]:
        recipe = self._recipe
        if share < recipe.warmup:
            return []
        exponent = 20 - 18 * (share - recipe.warmup) / (1 - recipe.warmup)
        found = [place.regulariser(exponent) for place in self._places]
        return [recipe.rounding_weight * penalty for penalty in found if penalty is not None]

    def _batch(self, losses: Sequence[Loss]) -> Batch:
        data, streams, device = self._data, self._data.streams, self._data.device
        chosen = data.draw()
        exact = take(streams.exact, chosen, device)
        quantized = take(streams.quantized, chosen, device)
        inner: dict[str, Tensor] = {}
        inner_target: dict[str, Tensor] = {}
        if any(loss.needs_inner for loss in losses):
            self._in_full_precision(exact, inner_target)
        homologous = None
        if any(loss.needs_homologous for loss in losses):
            homologous = self._in_full_precision(quantized, {})
        mixed = _mix(exact, quantized, self._recipe.input_mix, data.generator)
        clean_wanted = any(loss.needs_clean for loss in losses)
        inputs = torch.cat([mixed, quantized]) if clean_wanted else mixed
        for place in self._places:
            place.keep(self._recipe.keep)
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
        )

    @torch.no_grad()
    def _in_full_precision(self, x: Tensor, inner: dict[str, Tensor]) -> Tensor:
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
