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
from vit_ptq_bench.methods.quantization.calibration.segment_recording import SegmentRecording
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.model.structure import Segment
from vit_ptq_bench.methods.quantization.search.candidates import (
    Candidates,
    Grid,
    SearchMode,
    best_index,
)
from vit_ptq_bench.methods.quantization.search.scores import bottom_eliminated, heaviest


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
            if key not in state.chosen:
                inputs = _look(state.segment, state.recording.inputs, operation).inputs
                tensor = operation.operands(inputs)[which]
                state.chosen[key] = Candidates(quantizer, tensor, self.grid(operation))
            quantizer.active = True
            own = state.chosen[key]
            look = look or _look(state.segment, state.heavy.inputs, operation)
            best = self._best(look, own, state.heavy)
            state.changes += own.choose(best.expand(own.groups))
            state.seen[key] = state.changes

    def _best(self, look: "_Look", own: Candidates, recording: SegmentRecording) -> Tensor:
        def score(index: Tensor) -> Tensor:
            own.apply(index.expand(own.groups))
            error = bottom_eliminated(look.finish().sub_(recording.output), self.percent)
            return -error.square_().mul_(recording.squared_gradient).sum().reshape(1)

        with replayed(look.before):
            # What is not searched yet is in full precision, so the first choice is near the last.
            start = None if own.chosen is None else own.chosen[:1]
            return best_index(score, own.count, 1, self.mode, recording.output.device, start)


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
