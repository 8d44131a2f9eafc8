"""The engine of block-wise reconstruction: units one after the other, two streams of activations, one loop.

Not block-wise search (`search.blockwise`), which chooses scales from a grid.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
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
    take_output,
)
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.memory import is_out_of_memory, range_images
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, calibrate_sites
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Output, Segment, sites_of
from vit_ptq_bench.methods.quantization.reconstruction.activation_trainables import Steps
from vit_ptq_bench.methods.quantization.reconstruction.holdout import clearly_less, distances
from vit_ptq_bench.methods.quantization.reconstruction.loop import Data, Loop, Rest, Streams
from vit_ptq_bench.methods.quantization.reconstruction.recipe import Recipe, losses_of
from vit_ptq_bench.methods.quantization.reconstruction.trainables import (
    Attachment,
    Trainable,
    Unit,
    Weights,
)
from vit_ptq_bench.methods.quantization.reconstruction.units import (
    Step,
    features_in,
    features_of,
    predict_all,
    prediction_in,
    run_rest,
    steps_of,
)
from vit_ptq_bench.methods.quantization.reconstruction.views import with_views

logger = logging.getLogger(__name__)


def reconstruct(
    model: QuantizedModel,
    calibration: Calibration,
    recipe: Recipe,
    progress: CalibrationProgress | None = None,
    teacher: QuantizedModel | None = None,
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
        teacher: a copy of the model (`copy.deepcopy`) in full precision that gives the targets, for a model
            whose own function is no longer the original's; None: the model itself, quantizers off. Units
            of one layer compare layers of both, so its activations must have the model's scales.

    Raises:
        MethodError: see `Recipe.check` and `activations.allocate`.
    """
    recipe.check(model.structure, calibration.n_images)
    if teacher is None and recipe.unit == "pair":
        # The second block of a pair stays open: what is trained in it must not give targets.
        model.activate(weights=False, activations=False)
        teacher = copy.deepcopy(model)
    Engine(model, calibration, recipe, progress, teacher).run()


class Engine:
    """One reconstruction.

    Attributes:
        recipe: how.
        steps, teachers: the units, and those of the model that gives the targets.
        streams: activations in front of the next unit.
    """

    def __init__(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        recipe: Recipe,
        progress: CalibrationProgress | None,
        teacher: QuantizedModel | None,
    ) -> None:
        self._structure, self._device = model.structure, model.device
        self.recipe, self._progress = recipe, progress
        self._generator = torch.Generator(self._device).manual_seed(calibration.seed)
        # Labels are drawn apart: what a loss draws must not move the batches.
        self._labels = calibration.generator()
        for each in (model, teacher):
            if each is not None:
                each.activate(weights=False, activations=False)
        self._exact = (teacher or model).structure
        self.steps = steps_of(model.structure, recipe.unit)
        self.teachers = self.steps if teacher is None else steps_of(self._exact, recipe.unit)
        self._done, self._total = 0, count_of(self.steps, recipe) * recipe.iterations
        self._range_images = range_images(model, calibration)
        images = with_views(calibration.whole(), recipe.crops, calibration.seed)
        self._trained, self._held = split(calibration, recipe, self._device)
        self._model, self._judged = model, images[self._held.to(images.device)]
        self._start = copy.deepcopy(model) if len(self._held) else None
        self._say_need(images)
        self.streams = Streams(images, images, *self._say(images, teacher or model))
        self._taps: list[Tensor] = []
        self._open: list[tuple[Trainable, Attachment]] = []

    def run(self) -> None:
        """Go through all units."""
        for step, exact in zip(self.steps, self.teachers, strict=True):
            self.streams = self.advance(step, exact, self.streams)
            if exact.finished.tap is not None:
                self._taps.append(
                    send_through(exact.finished.tap, self.streams.exact, self._device)
                )
        if self._start is not None:
            self._settle(self._start)
        if self._progress is not None:
            self._progress(self._total, self._total, "")

    def advance(self, step: Step, exact: Step, streams: Streams) -> Streams:
        """Train one unit on the activations in front of it, and return those behind it."""
        target = send_through(exact.unit.run, streams.exact, self._device)
        if self.recipe.unit == "layer" and step.unit.kind == "block":
            self._train_layers(step.unit, exact.unit, streams)
        else:
            self._train(step, exact, streams, target)
        finish(step.finished, self.recipe)
        if step.finished is not step.unit:
            target = send_through(exact.finished.run, streams.exact, self._device)
        quantized = send_through(step.finished.run, streams.quantized, self._device)
        return replace(streams, exact=target, quantized=quantized)

    def _settle(self, start: QuantizedModel) -> None:
        """Take the start back, unless the held-out images are now clearly nearer to full precision."""
        for segment in start.structure.segments:
            finish(segment, self.recipe)
        exact = take_output(self.streams.prediction, self._held, self._device)
        now, before = (
            distances(exact, _predictions(each, self._judged, self._device))
            for each in (self._model, start)
        )
        words = "%.4g instead of %.4g from full precision on %d held-out images: the %s is kept"
        better = clearly_less(now, before)
        kept = "reconstruction" if better else "start"
        logger.info(words, now.mean(), before.mean(), len(now), kept)
        if not better:
            self._model.module, self._model.structure = start.module, start.structure

    @torch.no_grad()
    def _say_need(self, images: Tensor) -> None:
        """Log how much the activations of all images take at most, from one image sent through."""
        x, largest = images[:1].to(self._device), 0
        taps = []
        for segment in self._exact.segments:
            x = segment.run(x)
            largest = max(largest, x.numel())
            if segment.tap is not None:
                taps.append(segment.tap(x))
        prediction = (x,) if self._exact.tail is None else self._exact.tail(taps)
        kept = sum(tensor.numel() for tensor in (*taps, *prediction))
        megabytes = 4 * len(images) * (COPIES * largest + kept) / 10**6
        logger.info("activations of %d images take up to %.1f MB", len(images), megabytes)

    def _say(self, images: Tensor, model: QuantizedModel) -> tuple[Output, Output | None]:
        """Prediction and, if a loss asks for it, penultimate feature of the full-precision model."""
        predict = partial(predict_all, self._exact)
        prediction = _predictions(model, images, self._device)
        asked = [loss for step in self.steps for loss in losses_of(step.unit, self.recipe.losses)]
        if not any(loss.needs_features for loss in asked):
            return prediction, None
        return prediction, predictions(
            lambda x: features_of(self._exact, partial(predict, x)), images, self._device
        )

    def _rest(self, step: Step, x: Tensor, chosen: Tensor) -> Output:
        """The rest of the model behind a unit, for its output ``x`` of the images ``chosen``."""
        if step.unit.kind == "model":
            return prediction_in(x, self.streams.prediction)
        taps = [take(tap, chosen, self._device) for tap in self._taps]
        return run_rest(step.behind, self._exact.tail, taps, x)

    def _features(self, step: Step, x: Tensor, chosen: Tensor) -> Output:
        """The penultimate feature for a unit's output ``x`` of the images ``chosen``."""
        if step.unit.kind == "model":
            assert self.streams.features is not None
            return features_in(x, self.streams.features)
        return features_of(self._exact, partial(self._rest, step, x, chosen))

    def _train_layers(self, segment: Segment, original: Segment, streams: Streams) -> None:
        """Take a block layer by layer, each on what the layers before it now give."""
        device = self._device
        originals = {op.name: op for op in original.operations if isinstance(op, WeightedOperation)}
        exact = {
            name: input_of(op, original, streams.exact, device) for name, op in originals.items()
        }
        for operation in segment.operations:
            if not isinstance(operation, WeightedOperation):
                _switch_on(operation)
                continue
            step = _layer_step(operation, segment.stage)
            aim = step
            if original is not segment:
                aim = _layer_step(originals[operation.name], segment.stage)
            own = replace(
                streams,
                exact=exact.pop(operation.name),
                quantized=input_of(operation, segment, streams.quantized, device),
            )
            target = send_through(aim.unit.run, own.exact, device)
            self._train(step, aim, own, target)
            finish(step.unit, self.recipe)

    def _train(self, step: Step, exact: Step, streams: Streams, target: Tensor) -> None:
        """Train one unit, with half the batch as long as memory does not suffice."""
        size = self.recipe.batch_size
        while True:
            try:
                self._attempt(step, exact, streams, target, size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size //= 2
                logger.warning(
                    "%s: out of memory; goes on with batches of %d images", step.unit.name, size
                )
        self._done += self.recipe.iterations
        if self.recipe.rule is not None:
            _calibrate(step.unit, self._for_ranges(streams), self.recipe.rule)

    def _attempt(
        self, step: Step, exact: Step, streams: Streams, target: Tensor, batch_size: int
    ) -> None:
        recipe, segment = self.recipe, step.unit
        losses = losses_of(segment, recipe.losses)
        data = Data(
            streams,
            target,
            partial(self._rest, exact),
            recipe,
            batch_size,
            self._generator,
            self._device,
            features_of=partial(self._features, exact),
            teacher=None if exact is step else exact.unit,
            trained=self._trained,
            held=self._held,
        )
        if any(loss.needs_importance for loss in losses):
            data.importance = _importance(target, data.rest, self._labels, self._device)
        attached: list[tuple[Trainable, Attachment]] = []
        try:
            fresh = self._fresh(segment, streams)
            for trainable in (*recipe.trainables, *_held_still(recipe)):
                attached += [(trainable, place) for place in trainable.attach(fresh)]
            loop = Loop(segment, self._open + attached, losses, data, recipe)
            outcome = loop.run(self._tick)
        except BaseException:
            _take_out(attached, False)
            raise
        # What was open has been trained before, and is back there where this unit brought nothing.
        accept = outcome == "trained" or (outcome == "start" and bool(self._open))
        done = set(segment.operations if outcome == "failed" else step.finished.operations)
        everything = self._open + attached
        self._open = [(kind, place) for kind, place in everything if place.operation not in done]
        _take_out([pair for pair in everything if pair[1].operation in done], accept)

    def _fresh(self, segment: Segment, streams: Streams) -> Unit:
        """The unit with those of its operations in which nothing is trained yet."""
        few = self._for_ranges(streams)
        if self._open:
            taken = {place.operation for _, place in self._open}
            operations = tuple(op for op in segment.operations if op not in taken)
            segment = replace(segment, operations=operations)
        return Unit(
            segment,
            self._structure,
            streams.exact,
            few,
            self._generator,
            self.recipe.keep_open,
        )

    def _for_ranges(self, streams: Streams) -> Tensor:
        return streams.quantized[: self._range_images].to(self._device)

    def _tick(self, iteration: int, name: str) -> None:
        if self._progress is not None:
            self._progress(self._done + iteration, self._total, name)


def _predictions(model: QuantizedModel, images: Tensor, device: torch.device) -> Output:
    """What a model says of images: logits, or of a detector the maps that its tail gives."""
    structure = model.structure
    whole = model if structure.tail is None else partial(predict_all, structure)
    return predictions(whole, images, device)


def _layer_step(operation: WeightedOperation, stage: int) -> Step:
    """One layer as a unit, which has no rest that a loss could ask for."""
    alone = Segment(operation.name, "layer", operation, (operation,), stage)
    return Step(alone, alone, [alone])


def count_of(steps: Sequence[Step], recipe: Recipe) -> int:
    """Return how many times the loop runs."""
    if recipe.unit != "layer":
        return len(steps)
    layers = [
        sum(isinstance(op, WeightedOperation) for op in step.unit.operations)
        if step.unit.kind == "block"
        else 1
        for step in steps
    ]
    return sum(layers)


def _switch_on(operation: QuantOperation) -> None:
    for quantizer in operation.quantizers().values():
        quantizer.active = True


def _held_still(recipe: Recipe) -> tuple[Trainable, ...]:
    """Quantize what the recipe trains nothing in, as calibrated, while the rest is trained."""
    steps = Steps(rate=0.0)
    return (Weights(rate=0.0), steps) if recipe.quantize_weights else (steps,)


def _take_out(attached: Sequence[tuple[Trainable, Attachment]], accept: bool) -> None:
    for _, place in reversed(attached):
        place.detach(accept)


def finish(segment: Segment, recipe: Recipe) -> None:
    """Leave a segment fully quantized, its weights as codes or open, or but for its weights."""
    for operation in segment.operations:
        _switch_on(operation)
        if not isinstance(operation, WeightedOperation):
            continue
        if not recipe.quantize_weights:
            operation.weight_quantizer.active = False
        elif not recipe.keep_open:
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


def split(
    calibration: Calibration, recipe: Recipe, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """Return the numbers of the images to train on (None: all) and of those to judge by, drawn by the seed.

    Views of an image that is held out are not trained on either.
    """
    count, held = calibration.n_images, recipe.held_out(calibration.n_images)
    if not held:
        return None, torch.empty(0, dtype=torch.long, device=device)
    # Drawn apart from batches: the same images whatever is trained.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(calibration.seed))
    views = torch.arange(1 + recipe.crops)[:, None] * count
    trained = (views + order[held:].sort().values).flatten()
    return trained.to(device), order[:held].sort().values.to(device)
