"""Recordings of whole segments, with squared gradients of a loss."""

from contextlib import ExitStack
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import (
    OutputLoss,
    require_gradient,
    squared_gradients,
)
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.calibration.recording import cached, gathered
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Output, Structure


@dataclass
class SegmentRecording:
    """The inputs and output of one segment over the whole calibration set.

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
) -> list[SegmentRecording]:
    """Return a recording of each segment, all from the same passes, with all quantizers off.

    Arguments as in `recording.record_operations`.

    Raises:
        MethodError: NaN or infinite activations, or a segment on which the loss does not depend.
    """
    model.activate(weights=False, activations=False)
    segments = model.structure.segments

    def make() -> dict[str, Tensor]:
        return _recorded(model, calibration, loss, draws, batch_size)

    names = [operation.name for operation in model.operations]
    words = ("segments", names, loss.__qualname__, draws, batch_size, calibration.seed)
    tensors = cached(model, calibration, words, make)
    kinds = [field.name for field in fields(SegmentRecording)]
    recordings = [
        SegmentRecording(**{kind: tensors[f"{i}/{kind}"] for kind in kinds})
        for i in range(len(segments))
    ]
    for segment, recording in zip(segments, recordings, strict=True):
        require_gradient(recording.squared_gradient, segment.name, "block")
    return recordings


def _recorded(
    model: QuantizedModel, calibration: Calibration, loss: OutputLoss, draws: int, batch_size: int
) -> dict[str, Tensor]:
    """The fields of each segment's recording, named ``index/field``."""
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
    gradients = squared_gradients(prediction, outputs, loss, draws, generator)
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
