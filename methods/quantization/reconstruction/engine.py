"""The engine of block-wise reconstruction: units one after the other, two streams of activations, one loop.

Not block-wise search (`search.blockwise`), which chooses scales from a grid.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.activations import (
    COPIES,
    allocate,
    batches,
    input_of,
    predictions,
    send_through,
    take,
)
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.memory import is_out_of_memory, range_images
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, calibrate_sites
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Output, Segment, sites_of
from vit_ptq_bench.methods.quantization.reconstruction.loop import Data, Loop, Rest, Streams
from vit_ptq_bench.methods.quantization.reconstruction.recipe import Recipe, losses_of
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Attachment, Trainable, Unit
from vit_ptq_bench.methods.quantization.reconstruction.units import run_rest, units_of

logger = logging.getLogger(__name__)


def reconstruct(
    model: QuantizedModel,
    calibration: Calibration,
    recipe: Recipe,
    progress: CalibrationProgress | None = None,
) -> None:
    """Train what the recipe says in every unit, in execution order.

    Quantizers must be calibrated (or `Recipe.rule` does it). Units behind the current one stay in full
    precision until it is their turn; the memory held is four activations, however many units there
    are (see `calibration.activations`).

    Args:
        model: the wrapped model; it ends with its weights as codes.
        calibration: the images; their random generator decides batches, mixes and drops.
        recipe: how.
        progress: called after every iteration with all units' iterations and the unit's name.

    Raises:
        MethodError: see `Recipe.check` and `activations.allocate`.
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
        progress: CalibrationProgress | None,
    ) -> None:
        self._structure, self._device = model.structure, model.device
        self._recipe, self._progress = recipe, progress
        self._generator = torch.Generator(self._device).manual_seed(calibration.seed)
        # Labels are drawn apart: what a loss draws must not move the batches.
        self._labels = calibration.generator()
        model.activate(weights=False, activations=False)
        self._units = units_of(model.structure, recipe.unit)
        self._done, self._total = 0, _count(self._units, recipe) * recipe.iterations
        self._range_images = range_images(model, calibration)
        images = calibration.whole()
        self._say_need(images)
        whole = model if model.structure.tail is None else self._predict
        self._streams = Streams(images, images, predictions(whole, images, self._device))
        self._taps: list[Tensor] = []

    def run(self) -> None:
        for index, segment in enumerate(self._units):
            streams = self._streams
            target = send_through(segment.run, streams.exact, self._device)
            rest = partial(self._rest, index)
            if self._recipe.unit == "layer" and segment.kind == "block":
                self._train_layers(segment)
            else:
                self._train(segment, streams, target, rest)
            _finish(segment)
            quantized = send_through(segment.run, streams.quantized, self._device)
            self._streams = Streams(target, quantized, streams.prediction)
            if segment.tap is not None:
                self._taps.append(send_through(segment.tap, target, self._device))
        if self._progress is not None:
            self._progress(self._total, self._total, "")

    @torch.no_grad()
    def _say_need(self, images: Tensor) -> None:
        """Log how much the activations of all images take at most, from one image sent through."""
        x, largest = images[:1].to(self._device), 0
        taps = []
        for segment in self._units:
            x = segment.run(x)
            largest = max(largest, x.numel())
            if segment.tap is not None:
                taps.append(segment.tap(x))
        prediction = (x,) if self._structure.tail is None else self._structure.tail(taps)
        kept = sum(tensor.numel() for tensor in (*taps, *prediction))
        megabytes = 4 * len(images) * (COPIES * largest + kept) / 10**6
        logger.info("activations of %d images take up to %.1f MB", len(images), megabytes)

    def _predict(self, images: Tensor) -> Output:
        """The feature maps of a detector, which the global loss compares."""
        first = self._units[0]
        return run_rest(self._units, self._structure.tail, (), first.run(images))

    def _rest(self, index: int, x: Tensor, chosen: Tensor) -> Output:
        """The rest of the model behind unit ``index``, for its output ``x`` of the images ``chosen``."""
        taps = [take(tap, chosen, self._device) for tap in self._taps]
        return run_rest(self._units[index:], self._structure.tail, taps, x)

    def _train_layers(self, segment: Segment) -> None:
        """Take a block layer by layer, each on what the layers before it now give."""
        streams, device = self._streams, self._device
        layers = [op for op in segment.operations if isinstance(op, WeightedOperation)]
        exact = {op.name: input_of(op, segment, streams.exact, device) for op in layers}
        for operation in segment.operations:
            if not isinstance(operation, WeightedOperation):
                _switch_on(operation)
                continue
            alone = Segment(operation.name, "layer", operation, (operation,), segment.stage)
            own = Streams(
                exact.pop(operation.name),
                input_of(operation, segment, streams.quantized, device),
                streams.prediction,
            )
            target = send_through(alone.run, own.exact, device)
            self._train(alone, own, target, partial(_run_alone, alone))
            _finish(alone)

    def _train(self, segment: Segment, streams: Streams, target: Tensor, rest: Rest) -> None:
        """Train one unit, with half the batch as long as memory does not suffice."""
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
            _calibrate(segment, self._for_ranges(streams), self._recipe.rule)

    def _attempt(
        self,
        segment: Segment,
        streams: Streams,
        target: Tensor,
        rest: Rest,
        batch_size: int,
    ) -> None:
        recipe = self._recipe
        few = self._for_ranges(streams)
        unit = Unit(segment, self._structure, streams.exact, few, self._generator)
        losses = losses_of(segment, recipe.losses)
        data = Data(streams, target, rest, recipe, batch_size, self._generator, self._device)
        if any(loss.needs_importance for loss in losses):
            data.importance = _importance(target, rest, self._labels, self._device)
        attached: list[tuple[Trainable, Attachment]] = []
        accept = False
        try:
            for trainable in recipe.trainables:
                attached += [(trainable, place) for place in trainable.attach(unit)]
            accept = Loop(segment, attached, losses, data, recipe).run(self._tick)
        finally:
            for _, attachment in reversed(attached):
                attachment.detach(accept)

    def _for_ranges(self, streams: Streams) -> Tensor:
        return streams.quantized[: self._range_images].to(self._device)

    def _tick(self, iteration: int, name: str) -> None:
        if self._progress is not None:
            self._progress(self._done + iteration, self._total, name)


def _run_alone(layer: Segment, x: Tensor, chosen: Tensor) -> Tensor:
    """A unit of one layer has no rest that a loss could ask for."""
    return layer.run(x)


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


def _calibrate(segment: Segment, images: Tensor, rule: RangeRule) -> None:
    """Calibrate the static activations of a trained unit on its quantized input, one by one."""
    _finish_weights(segment)
    sites = list(sites_of(segment.operations))
    for site in sites:
        site.quantizer.active = site.is_weight
    calibrate_sites(sites, lambda: segment.run(images), rule, sequential=True)


def _finish_weights(segment: Segment) -> None:
    for operation in segment.operations:
        if isinstance(operation, WeightedOperation):
            operation.weight_quantizer.active = True
            operation.freeze()


def _importance(
    target: Tensor, rest: Rest, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Squared Fisher gradient at the unit's output of every image, divided by the mean."""
    importance = allocate(target.shape, device)
    everything = torch.arange(len(target), device=device)
    for part in batches(target):
        output = target[part].to(device).requires_grad_()
        with torch.enable_grad():
            loss = fisher_loss(rest(output, everything[part]), generator)
        importance[part] = torch.autograd.grad(loss, output)[0].square()
    return importance.div_(importance.mean().clamp_min(torch.finfo(importance.dtype).tiny))
