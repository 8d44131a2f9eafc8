"""Layers in execution order, each with what the full-precision and the quantized stream bring to it.

The full-precision stream runs through the model as it was trained, the quantized one through the layers that
are quantized already. Both advance half a block at a time, so that a layer is reached without sending the
images through the model again: two passes in all, and a part of one for each layer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.activations import (
    batches,
    input_of,
    send_through,
)
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.calibration.recording import record_operations
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Segment, Structure

Target = Literal["layer", "stream"]
"""What layers aim at: their own full-precision output, or (those that write it) the residual stream's."""


GRADIENT_FLOOR = 0.1
"""What a row counts at least of the mean row where gradients say how much: of few draws some are zero."""


@dataclass(frozen=True)
class Rows:
    """Rows of some images at one layer; n rows, K columns of its weight, O outputs; float32.

    Attributes:
        x: quantized input, [n, K].
        exact: full-precision input, [n, K]; None where nobody needs it.
        target: what the layer's output should be, [n, O].
        weight: importance of each row, [n].
        image: number of each row's image, int64 [n].
    """

    x: Tensor
    exact: Tensor | None
    target: Tensor
    weight: Tensor
    image: Tensor


@dataclass(frozen=True)
class TokenWeights:
    """How much a token's error counts.

    Attributes:
        inverse_power: in layers that write the residual stream, one over the token's squared norm behind
            them: else the few tokens of largest norm own the least squares.
        read: factor on the tokens that the head reads, in the last block behind its attention; models whose
            head reads all tokens have no such tokens.
        fisher_draws: draws of the prediction's labels, whose mean squared gradient at a layer's output, mean
            over channels, is a factor too (`token_gradients`); 0: it is none.
    """

    inverse_power: bool = True
    read: float = 5.0
    fisher_draws: int = 0


@dataclass(frozen=True)
class LayerStreams:
    """One layer with both streams at it; its weight is still the full-precision one.

    Attributes:
        layer: its input quantizer is active.
        segment: the half of a block, or whole segment, that it is in.
        structure: of the model.
        writes: whether its output is added to the residual stream.
        images: number of calibration images.
        quantized: its input in the quantized stream, before its input quantizer; images first.
        exact: its input in full precision; None where nobody needs it.
        before: the quantized stream as it enters the segment.
        behind: the full-precision stream behind the segment.
        weights: which tokens count how much.
        gradients: of the layer's rows, [images, rows of an image]; None: all are alike.
        read_tokens: how many leading tokens alone are read behind this layer; 0: all are.
        target: what it aims at.
    """

    layer: WeightedOperation
    segment: Segment
    structure: Structure
    writes: bool
    images: int
    quantized: Tensor
    exact: Tensor | None
    before: Tensor
    behind: Tensor
    weights: TokenWeights
    gradients: Tensor | None
    read_tokens: int
    target: Target

    def batches(self) -> Iterator[Rows]:
        """Yield the rows of all images, some images at a time, in order."""
        for part in batches(self.quantized):
            x = self.layer.input_quantizer(self._take(self.quantized, part).flatten(0, 1))
            columns = self.layer.columns(x)
            exact = None if self.exact is None else self._take(self.exact, part).flatten(0, 1)
            numbers = torch.arange(*part.indices(self.images)[:2], device=x.device)
            yield Rows(
                x=columns,
                exact=None if exact is None else self.layer.columns(exact),
                target=self._target(part, exact),
                weight=self._weight(part, columns) * self._gradient(part),
                image=numbers.repeat_interleave(len(columns) // len(numbers)),
            )

    def _take(self, x: Tensor, part: slice) -> Tensor:
        return x[part].to(self.layer.weight.device)

    def _target(self, part: slice, exact: Tensor | None) -> Tensor:
        if self.writes and self.target == "stream":
            left = self._take(self.behind, part) - self._take(self.before, part)
            asked = self.structure.asked_of(self.layer, left)
            return self.segment.arrange(asked).flatten(0, -2)
        assert exact is not None
        output = self.layer.compute(exact, self.layer.weight)
        return output.movedim(self.layer.output_axis, -1).flatten(0, -2)

    def _gradient(self, part: slice) -> Tensor | float:
        return 1.0 if self.gradients is None else self._take(self.gradients, part).flatten()

    def _weight(self, part: slice, columns: Tensor) -> Tensor:
        behind = self._take(self.behind, part)
        weight = torch.ones_like(behind[..., :1])
        if self.read_tokens:
            weight[:, : self.read_tokens] *= self.weights.read
        if not self.writes:
            # Of layers that read the stream windows may be in any layout: all count alike, unless the head
            # reads some alone, and then there are no windows.
            return weight.flatten() if self.read_tokens else columns.new_ones(len(columns))
        if self.weights.inverse_power:
            weight /= behind.square().sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return self.segment.arrange(weight).flatten()


Visit = Callable[[LayerStreams], None]
"""Quantizes one layer; it is called once per layer, in execution order."""


@torch.no_grad()
def visit_streams(
    model: QuantizedModel,
    calibration: Calibration,
    visit: Visit,
    *,
    target: Target = "stream",
    weights: TokenWeights | None = None,
    exact_inputs: bool = False,
    progress: CalibrationProgress | None = None,
) -> None:
    """Call ``visit`` for each layer of the segments in order; later layers see what it has made of it.

    Args:
        model: its activations are calibrated. Operations behind the segments (neck and heads of a detector)
            are not visited.
        calibration: the images.
        visit: leaves the layer's weight frozen, or its quantizer active if it shall be quantized.
        target: what layers that write the residual stream aim at; all others at their own output.
        weights: which tokens count how much; None: `TokenWeights`' defaults.
        exact_inputs: whether ``visit`` looks at `Rows.exact`.
        progress: called after each layer.

    Raises:
        MethodError: NaN or infinite activations; the layer is named.
    """
    walk = _Walk(model, calibration, visit, target, weights or TokenWeights(), exact_inputs)
    segments = model.structure.segments
    parts = [part for segment in segments for part in (segment.halves or (segment,))]
    total = sum(isinstance(op, WeightedOperation) for part in parts for op in part.operations)
    done = 0
    for part in parts:
        for name in walk.through(part):
            done += 1
            if progress is not None:
                progress(done, total, name)


class _Walk:
    """The two streams on their way through the model."""

    def __init__(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        visit: Visit,
        target: Target,
        weights: TokenWeights,
        exact_inputs: bool,
    ) -> None:
        self._visit, self._target, self._weights = visit, target, weights
        self._exact_inputs, self._device = exact_inputs, model.device
        self._exact = self._quantized = calibration.whole()
        self._structure = model.structure
        self._gradients: Mapping[str, Tensor] = {}
        if weights.fisher_draws:
            self._gradients = token_gradients(model, calibration, weights.fisher_draws)
        _switch(self._structure.operations, False)

    def through(self, part: Segment) -> Iterator[str]:
        """Take both streams through ``part``, its layers visited; yield the names of those."""
        behind = send_through(part.run, self._exact, self._device)
        layers = [op for op in part.operations if isinstance(op, WeightedOperation)]
        exact = {
            op.name: input_of(op, part, self._exact, self._device)
            for op in layers
            if self._exact_inputs or not self._aims_at_stream(op, part)
        }
        for operation in part.operations:
            _switch([operation], True)
            if isinstance(operation, WeightedOperation):
                operation.weight_quantizer.active = False
                self._visit(self._view(operation, part, exact.pop(operation.name, None), behind))
                operation.weight_quantizer.active |= operation.frozen
                yield operation.name
        self._quantized = send_through(part.run, self._quantized, self._device)
        self._exact = behind

    def _aims_at_stream(self, layer: WeightedOperation, part: Segment) -> bool:
        return self._target == "stream" and self._writes(layer, part)

    def _writes(self, layer: WeightedOperation, part: Segment) -> bool:
        """Whether its output is added to the residual stream: the last of each half of a block is, mostly."""
        last = part.kind == "block" and layer is part.operations[-1]
        return last and self._structure.writes(layer)

    def _view(
        self, layer: WeightedOperation, part: Segment, exact: Tensor | None, behind: Tensor
    ) -> LayerStreams:
        quantized = input_of(layer, part, self._quantized, self._device)
        check_finite(quantized, f"{layer.name}.input")
        return LayerStreams(
            layer=layer,
            segment=part,
            structure=self._structure,
            writes=self._writes(layer, part),
            images=len(quantized),
            quantized=quantized,
            exact=exact,
            before=self._quantized,
            behind=behind,
            weights=self._weights,
            gradients=self._gradients.get(layer.name),
            read_tokens=self._structure.read_of(layer),
            target=self._target,
        )


def token_gradients(
    model: QuantizedModel, calibration: Calibration, draws: int
) -> dict[str, Tensor]:
    """Return by layer how much the prediction asks of each row, in full precision, beside the mean row.

    Squared gradients of `fisher_loss` at the layer's output, mean over draws and channels and divided by
    their mean over all rows; `GRADIENT_FLOOR` of that is the same for all rows.

    Args:
        model: quantizers inactive, weights in full precision.
        calibration: the images; its seed decides the draws.
        draws: at least 1.

    Returns:
        float32 [images, rows of an image], each of mean 1; the rows in the order of `LayerStreams.batches`.

    Raises:
        MethodError: no gradient reaches a layer, or an activation is NaN or infinite.
    """
    layers = [op for segment in model.structure.segments for op in segment.operations]
    layers = [op for op in layers if isinstance(op, WeightedOperation)]
    found = {}
    for layer, recording in record_operations(
        model, calibration, fisher_loss, draws, operations=layers
    ):
        assert isinstance(layer, WeightedOperation) and recording.squared_gradient is not None
        power = recording.squared_gradient.movedim(layer.output_axis, -1).mean(dim=-1)
        shares = (power / power.mean()).reshape(calibration.n_images, -1)
        found[layer.name] = GRADIENT_FLOOR + (1 - GRADIENT_FLOOR) * shares
    return found


def _switch(operations: Sequence[QuantOperation], on: bool) -> None:
    for operation in operations:
        for quantizer in operation.quantizers().values():
            quantizer.active = on
