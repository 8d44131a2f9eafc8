"""Block-wise search: operand scales chosen from a grid by the error of the whole block's output (APQ-ViT).

Not block-wise reconstruction (`quantization.reconstruction`), which trains a block's weights and steps by
gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.passes import require_reached
from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.calibration.segment_recording import SegmentRecording
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.model.structure import Segment
from vit_ptq_bench.methods.quantization.search.candidates import (
    Candidates,
    Grid,
    SearchMode,
    best_index,
)
from vit_ptq_bench.methods.quantization.search.scores import (
    DirectScore,
    Operand,
    SquaredErrorMetric,
    bottom_eliminated,
    by_row,
    heaviest,
)

FEW_GROUPS = 16
"""Groups up to which each is searched for itself: the time that takes grows with their number."""

FARTHEST = 4
"""Candidates by which many groups are moved together at most."""


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
class BlockwiseSearch:
    """Search of the scales of all operations of a segment by the error of its output.

    The part of the segment before an operation is replayed while its scales are searched. The score is one
    number for the segment, so the groups (rows, heads) of a quantizer cannot be searched at once: all start
    at the factors of least error of the operation's own output, then each is searched in turn by the
    segment's error; more than `FEW_GROUPS` are moved together.

    Attributes:
        grid: gives the grid of an operation's operands, 0 the first one.
        percent: of errors eliminated per image and candidate.
        rounds: alternations over all operations; what nothing has changed around is not searched again.
        reverse: take operations from the last to the first.
        mode: ``coarse-to-fine`` or ``exhaustive``.
    """

    grid: Callable[[QuantOperation, int], Grid]
    percent: float
    rounds: int
    reverse: bool
    mode: SearchMode

    @torch.no_grad()
    def run(self, segment: Segment, recording: SegmentRecording) -> None:
        """Set every quantizer of ``segment`` and leave it active."""
        state = _State(segment, recording, self._heavy(recording))
        order = segment.operations[::-1] if self.reverse else segment.operations
        for _ in range(self.rounds):
            before = state.changes
            for operation in order:
                self._operation(operation, state)
            if state.changes == before:
                return

    def _heavy(self, recording: SegmentRecording) -> SegmentRecording:
        """The images that nearly all of the gradient lies on; all of them if the search is exhaustive."""
        if self.mode == "exhaustive":
            return recording
        index = heaviest(recording.squared_gradient)
        return SegmentRecording(
            recording.inputs[index], recording.output[index], recording.squared_gradient[index]
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
            look = look or _look(state.segment, state.heavy.inputs, operation)
            state.changes += self._choose(look, operation, which, state)
            state.seen[key] = state.changes

    def _choose(
        self, look: "_Look", operation: QuantOperation, which: int, state: "_State"
    ) -> bool:
        """Search one operand; return whether that has changed anything."""
        key, quantizer = (operation.name, which), list(operation.quantizers().values())[which]
        first = key not in state.chosen
        if first:
            inputs = _look(state.segment, state.recording.inputs, operation).inputs
            tensor = operation.operands(inputs)[which]
            state.chosen[key] = Candidates(quantizer, tensor, self.grid(operation, which))
            state.chosen[key].choose(self._by_own_output(look, operation, which, state))
        quantizer.active = True
        return state.chosen[key].choose(self._best(look, operation, which, state)) or first

    def _best(
        self, look: "_Look", operation: QuantOperation, which: int, state: "_State"
    ) -> Tensor:
        """Index of each group by the segment's error, from where it is now."""
        own, recording = state.chosen[operation.name, which], state.heavy
        assert own.chosen is not None

        def score(index: Tensor) -> Tensor:
            own.apply(index.expand(own.groups))
            error = bottom_eliminated(look.finish().sub_(recording.output), self.percent)
            return -error.square_().mul_(recording.squared_gradient).sum().reshape(1)

        # What is not searched yet is in full precision, so the first choice is near the last.
        with replayed(look.before):
            if own.groups > FEW_GROUPS:
                return self._together(score, own.chosen, own.count)
            index = own.chosen
            for group in range(own.groups):
                index = self._alone(score, index, group, own.count)
            return index

    def _together(self, score: Callable[[Tensor], Tensor], index: Tensor, count: int) -> Tensor:
        """Move all groups by the same number of candidates."""

        def moved(shift: Tensor) -> Tensor:
            return (index + shift - FARTHEST).clamp(0, count - 1)

        def shifted(shift: Tensor) -> Tensor:
            return score(moved(shift))

        middle = index.new_full((1,), FARTHEST)
        steps = 2 * FARTHEST + 1
        return moved(best_index(shifted, steps, 1, self.mode, index.device, middle))

    def _alone(
        self, score: Callable[[Tensor], Tensor], index: Tensor, group: int, count: int
    ) -> Tensor:
        """Search one group around where it is, the others as they are."""

        def moved(own: Tensor) -> Tensor:
            return torch.cat([index[:group], own, index[group + 1 :]])

        def changed(own: Tensor) -> Tensor:
            return score(moved(own))

        start = index[group : group + 1]
        return moved(best_index(changed, count, 1, self.mode, index.device, start))

    def _by_own_output(
        self, look: "_Look", operation: QuantOperation, which: int, state: "_State"
    ) -> Tensor:
        """Index of least squared error of the operation's output, for each group."""
        own, other = (state.chosen.get((operation.name, i)) for i in (which, 1 - which))
        assert own is not None
        output = operation.compute(*operation.operands(look.inputs))
        recording = by_row(operation, Recording(look.inputs, output, None))
        fixed = operation.operands(recording.inputs)[1 - which]
        if other is not None:
            fixed = other.quantizer.fake_quantize(fixed)
        searched = Operand(operation, recording, own.apply, own.quantizer, which, fixed, own.groups)
        score = DirectScore(SquaredErrorMetric(), searched)
        return best_index(score, own.count, own.groups, self.mode, fixed.device)


@dataclass
class _State:
    """Where the search of one segment is.

    Attributes:
        segment: what is searched.
        recording: over all images, for the ranges that factors refer to.
        heavy: over the images that are looked at.
        chosen: the operands searched so far.
        seen: the number of changes when each operand was last searched; if it still stands, nothing else
            has changed and the same would be chosen again.
        changes: how many choices have changed something.
    """

    segment: Segment
    recording: SegmentRecording
    heavy: SegmentRecording
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
    require_reached([wanted.name], [wanted.name] if inputs else [])
    return _Look(inputs[0], before, x, parts[position:])
