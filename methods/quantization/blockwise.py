"""Search of operand scales by the error of the whole block's output (APQ-ViT)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from methods.errors import MethodError
from methods.quantization.calibration import Calibration, check_finite
from methods.quantization.capture import OutputLoss, Record, gathered, share
from methods.quantization.layers import QuantMatMul, QuantOperation
from methods.quantization.model import Output, QuantizedModel, Segment, Structure
from methods.quantization.scores import heaviest, sum_by_group
from methods.quantization.search import Candidates, Grid, SearchMode, best_index


def bottom_eliminated(error: Tensor, percent: float) -> Tensor:
    """Set the smallest errors of each image to zero: those below the image's percentile of ``|error|``.

    The unavoidable small errors say nothing about a scale (APQ-ViT, bottom elimination). Each image has its
    own threshold, so the result does not depend on what else is in the batch.

    Args:
        error: [images, ...].
        percent: in [0, 100); 0 eliminates nothing.
    """
    sizes = error.abs().flatten(1)
    count = int(sizes.shape[1] * percent / 100)
    if count == 0:
        return error
    threshold = _order_statistic(sizes, count)
    kept = torch.ge(sizes, threshold, out=torch.empty_like(sizes))  # 1.0 or 0.0, no slow booleans
    return kept.mul_(error.flatten(1)).view_as(error)


def _order_statistic(x: Tensor, index: int) -> Tensor:
    """The element of each row that has ``index`` before it when sorted ([n, 1])."""
    if x.device.type == "cpu":
        # numpy's selection takes an eighth of the time of torch's on a CPU
        ordered = np.partition(x.numpy(), index, axis=1)
        return torch.from_numpy(ordered[:, index : index + 1].copy())
    return x.kthvalue(index + 1, dim=1, keepdim=True).values


@dataclass(frozen=True)
class EliminatedFisherMetric:
    """`FisherMetric` after bottom elimination; for a score on each operation's own output."""

    percent: float
    weighted: ClassVar[bool] = True
    by_token: ClassVar[bool] = False

    def terms(self, record: Record, estimate: Tensor, groups: int, axis: int) -> Tensor:
        """Return the weighted squared error per group, [1, groups]."""
        assert record.squared_gradient is not None
        error = bottom_eliminated(estimate.sub_(record.output), self.percent)
        return sum_by_group(error.square_().mul_(record.squared_gradient), groups, axis)[None]

    def score(self, terms: Tensor) -> Tensor:
        """Return minus the error."""
        return -terms[0]


@dataclass
class SegmentRecord:
    """What one segment saw over the whole calibration set.

    Attributes:
        inputs: full-precision inputs, [images, ...].
        output: full-precision outputs.
        squared_gradient: mean over draws of (dL/doutput)^2.
    """

    inputs: Tensor
    output: Tensor
    squared_gradient: Tensor


def record_segments(
    model: QuantizedModel, calibration: Calibration, loss: OutputLoss, draws: int, batch_size: int
) -> list[SegmentRecord]:
    """Return a record of each segment, all from the same passes, with all quantizers off.

    Arguments as in `capture.record_operations`.

    Raises:
        MethodError: NaN or infinite activations, or a segment on which the loss does not depend.
    """
    model.activate(weights=False, activations=False)
    segments = model.structure.segments

    def make() -> dict[str, Tensor]:
        return _recorded(model, calibration, loss, draws, batch_size)

    names = [operation.name for operation in model.operations]
    words = ("segments", names, loss.__qualname__, draws, batch_size, calibration.seed)
    tensors = share(model, calibration, words, make)
    kinds = [field.name for field in fields(SegmentRecord)]
    records = [
        SegmentRecord(**{kind: tensors[f"{i}/{kind}"] for kind in kinds})
        for i in range(len(segments))
    ]
    for segment, record in zip(segments, records, strict=True):
        if bool(record.squared_gradient.amax() == 0):
            raise MethodError(
                f"{segment.name}: the loss has no gradient here, so no scale can be preferred; "
                "check that the model's output depends on this block"
            )
    return records


def _recorded(
    model: QuantizedModel, calibration: Calibration, loss: OutputLoss, draws: int, batch_size: int
) -> dict[str, Tensor]:
    """The fields of each segment's record, named ``index/field``."""
    generator = calibration.generator()
    batches = (
        (len(images), _record_batch(model.structure, images, loss, draws, generator))
        for images in calibration.split(batch_size)
    )
    return gathered(batches, calibration.n_images)


def _record_batch(
    structure: Structure, images: Tensor, loss: OutputLoss, draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    check_finite(images, f"{structure.segments[0].operations[0].name}.input")
    inputs, outputs, prediction = _chain(structure, images)
    gradients = _squared_gradients(prediction, outputs, loss, draws, generator)
    kinds = {"inputs": inputs, "output": outputs, "squared_gradient": gradients}
    return {f"{i}/{kind}": t.detach() for kind, ts in kinds.items() for i, t in enumerate(ts)}


def _chain(structure: Structure, images: Tensor) -> tuple[list[Tensor], list[Tensor], Output]:
    """Inputs and outputs of all segments and the prediction, with a graph through all of them."""
    segments, tail = structure.segments, structure.tail
    inputs, outputs = [], []
    with ExitStack() as stack, torch.enable_grad():
        for segment in segments:
            for operation in segment.operations:
                stack.callback(operation.register_forward_hook(_check_output).remove)
        x = images.clone().requires_grad_()
        for segment in segments:
            inputs.append(x)
            x = segment.run(x)
            outputs.append(x)
        taps = [s.tap(y) for s, y in zip(segments, outputs, strict=True) if s.tap is not None]
        prediction = x if tail is None else tail(taps)
    return inputs, outputs, prediction


def _check_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    assert isinstance(module, QuantOperation)
    check_finite(output.detach(), module.name)


def _squared_gradients(
    prediction: Output,
    outputs: list[Tensor],
    loss: OutputLoss,
    draws: int,
    generator: torch.Generator,
) -> list[Tensor]:
    sums = [torch.zeros_like(output) for output in outputs]
    for draw in range(draws):
        with torch.enable_grad():
            value = loss(prediction, generator)
        gradients = torch.autograd.grad(value, outputs, retain_graph=draw < draws - 1)
        for total, gradient in zip(sums, gradients, strict=True):
            total.addcmul_(gradient, gradient, value=1 / draws)
    return sums


@contextmanager
def replayed(outputs: dict[QuantOperation, Tensor]) -> Iterator[None]:
    """Let operations return what they returned before, instead of computing it again."""

    def constant(output: Tensor) -> Callable[..., Tensor]:
        return lambda *inputs: output

    try:
        for operation, output in outputs.items():
            # an instance attribute hides the method until it is deleted
            operation.__dict__["forward"] = constant(output)
        yield
    finally:
        for operation in outputs:
            operation.__dict__.pop("forward", None)


@dataclass(frozen=True)
class BlockSearch:
    """Search of the scales of all operations of a segment by the error of its output.

    A candidate is one factor on the ranges of all groups (rows, heads) of a quantizer, for the score is one
    number. The part of the segment before an operation is replayed while its scales are searched.

    Attributes:
        grid: gives the grid of an operation's operands.
        percent: of errors eliminated per image and candidate.
        rounds: alternations over all operations; what nothing has changed around is not searched again.
        reverse: take operations from the last to the first.
        mode: ``coarse-to-fine`` or ``exhaustive``.
    """

    grid: Callable[[QuantOperation], Grid]
    percent: float
    rounds: int
    reverse: bool
    mode: SearchMode

    @torch.no_grad()
    def run(self, segment: Segment, record: SegmentRecord) -> None:
        """Set every quantizer of ``segment`` and leave it active."""
        state = _State(segment, record, self._heavy(record))
        order = segment.operations[::-1] if self.reverse else segment.operations
        for _ in range(self.rounds):
            before = state.changes
            for operation in order:
                self._operation(operation, state)
            if state.changes == before:
                return

    def _heavy(self, record: SegmentRecord) -> SegmentRecord:
        """The images that nearly all of the gradient lies on; all of them if the search is exhaustive."""
        if self.mode == "exhaustive":
            return record
        index = heaviest(record.squared_gradient)
        return SegmentRecord(
            record.inputs[index], record.output[index], record.squared_gradient[index]
        )

    def _operation(self, operation: QuantOperation, state: "_State") -> None:
        look = None  # the same for both operands
        for which in (0, 1) if isinstance(operation, QuantMatMul) else (1, 0):
            quantizer = list(operation.quantizers().values())[which]
            if quantizer.spec.is_float or quantizer.spec.dynamic:
                quantizer.active = True
                continue
            key = operation.name, which
            if state.seen.get(key) == state.changes:
                continue
            if key not in state.chosen:
                inputs = _look(state.segment, state.record.inputs, operation).inputs
                tensor = operation.operands(inputs)[which]
                state.chosen[key] = Candidates(quantizer, tensor, self.grid(operation))
            quantizer.active = True
            own = state.chosen[key]
            look = look or _look(state.segment, state.heavy.inputs, operation)
            best = self._best(look, own, state.heavy)
            state.changes += own.choose(best.expand(own.groups))
            state.seen[key] = state.changes

    def _best(self, look: "_Look", own: Candidates, record: SegmentRecord) -> Tensor:
        def score(index: Tensor) -> Tensor:
            own.apply(index.expand(own.groups))
            error = bottom_eliminated(look.finish().sub_(record.output), self.percent)
            return -error.square_().mul_(record.squared_gradient).sum().reshape(1)

        with replayed(look.before):
            # What is not searched yet is in full precision, so the first choice is near the last.
            start = None if own.chosen is None else own.chosen[:1]
            return best_index(score, own.count, 1, self.mode, record.output.device, start)


@dataclass
class _State:
    """Where the search of one segment is.

    Attributes:
        segment: what is searched.
        record: over all images, for the ranges that factors refer to.
        heavy: over the images that are looked at.
        chosen: the operands searched so far.
        seen: the number of changes when each operand was last searched; if it still stands, nothing else
            has changed and the same would be chosen again.
        changes: how many choices have changed something.
    """

    segment: Segment
    record: SegmentRecord
    heavy: SegmentRecord
    chosen: dict[tuple[str, int], Candidates] = field(default_factory=dict)
    seen: dict[tuple[str, int], int] = field(default_factory=dict)
    changes: int = 0


@dataclass(frozen=True)
class _Look:
    """What the search of one operation in a segment needs.

    Attributes:
        inputs: of the operation, as the segment is now.
        before: outputs of the operations before it in its half of the block.
        start: input of that half.
        parts: that half, and what follows.
    """

    inputs: tuple[Tensor, ...]
    before: dict[QuantOperation, Tensor]
    start: Tensor
    parts: tuple[Segment, ...]

    def finish(self) -> Tensor:
        """Return the output of the segment."""
        x = self.start
        for part in self.parts:
            x = part.run(x)
        return x


def _look(segment: Segment, x: Tensor, wanted: QuantOperation) -> _Look:
    parts = segment.halves or (segment,)
    position = next(i for i, part in enumerate(parts) if wanted in part.operations)
    for part in parts[:position]:
        x = part.run(x)
    inputs: list[tuple[Tensor, ...]] = []
    before: dict[QuantOperation, Tensor] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, QuantOperation)
        if module is wanted:
            inputs.append(args)
        elif not inputs:
            before[module] = output

    with ExitStack() as stack:
        for operation in parts[position].operations:
            stack.callback(operation.register_forward_hook(watch).remove)
        parts[position].run(x)
    if not inputs:
        raise MethodError(f"the forward pass never reached {wanted.name}; the model is unsupported")
    return _Look(inputs[0], before, x, parts[position:])
