"""Recordings of what goes through each operation of the full-precision model."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration import memory
from vit_ptq_bench.methods.quantization.calibration.cache import fingerprint, lies_channels_last
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import (
    OutputLoss,
    require_gradient,
    squared_gradients,
)
from vit_ptq_bench.methods.quantization.calibration.memory import require
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite, require_reached
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

RECORDED_SHARE = 0.26
"""Of `memory.budget`: recorded tensors held at once; more operations are recorded in further passes.

The rest is for the pass itself, for searches, and for what the allocator does not give back
(`tests/benchmarks/memory.py` shows that the whole keeps within two thirds of the budget).
"""


@dataclass
class Recording:
    """The inputs and output of one operation over the whole calibration set.

    Attributes:
        inputs: its inputs, first dimension = images (or images x windows).
        output: its output.
        squared_gradient: mean over draws of (dL/doutput)^2, or None if no loss was given.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    squared_gradient: Tensor | None


def record_operations(
    model: QuantizedModel,
    calibration: Calibration,
    loss: OutputLoss | None = None,
    draws: int = 1,
    batch_size: int = 8,
    operations: Sequence[QuantOperation] | None = None,
) -> Iterator[tuple[QuantOperation, Recording]]:
    """Yield each operation with its recording, computed with all quantizers inactive.

    Operations are recorded in groups of at most `RECORDED_SHARE` of `memory.budget`, one pass per group;
    the passes are identical, so the grouping does not change a digit.

    Args:
        model: its quantizers are switched off.
        calibration: the images.
        loss: gives squared gradients if present.
        draws: how many times the loss is drawn per batch.
        batch_size: images per forward (and backward) pass.
        operations: those to record; None: all.
    """
    model.activate(weights=False, activations=False)
    wanted = model.operations if operations is None else operations
    for group in _groups(model, wanted, calibration, loss is not None):
        recordings = _cached_recordings(model, group, calibration, loss, draws, batch_size)
        for operation in group:
            yield operation, recordings.pop(operation.name)
        memory.give_back()


def _cached_recordings(
    model: QuantizedModel,
    group: Sequence[QuantOperation],
    calibration: Calibration,
    loss: OutputLoss | None,
    draws: int,
    batch_size: int,
) -> dict[str, Recording]:
    """Recordings of a group, from an earlier calibration if one has left them.

    Without gradients they are one forward pass, and writing and reading them takes as long.
    """
    names = [operation.name for operation in group]

    def make() -> dict[str, Tensor]:
        return _recorded(model, group, calibration, loss, draws, batch_size)

    if loss is None or calibration.cache is None:
        tensors = make()
    else:
        words = ("operations", names, loss.__qualname__, draws, batch_size, calibration.seed)
        tensors = cached(model, calibration, words, make)
    return {name: _as_recording(name, tensors) for name in names}


def cached(
    model: QuantizedModel,
    calibration: Calibration,
    words: tuple[object, ...],
    make: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Return what follows from full-precision weights, images and ``words``: found, or made and left."""
    cache = calibration.cache
    if cache is None:
        return make()
    weights = model.state_tensors().values()
    key = fingerprint(words, [*weights, *calibration.batches])
    found = cache.get(key)
    if found is not None:
        return {name: tensor.to(model.device) for name, tensor in found.items()}
    start = time.perf_counter()
    made = make()
    cache.put(key, made, time.perf_counter() - start)
    return made


def gathered(
    batches: Iterable[tuple[int, MutableMapping[str, Tensor]]], images: int
) -> dict[str, Tensor]:
    """Join the tensors of mini-batches along their rows, each copied to its place as it comes.

    Kept until the end and joined then, they would take twice the memory. Images that lie channels last do so
    afterwards: a convolution adds in another order otherwise.

    Args:
        batches: of each the number of images, and tensors by name, [rows, ...], which are taken out of it.
            The first one tells how many rows an image has; where others have more (a detector's
            proposals), room is made for them.
        images: in all batches together.
    """
    whole: dict[str, Tensor] = {}
    filled: dict[str, int] = {}
    for size, tensors in batches:
        # Nothing of a batch is kept while the next one is computed.
        while tensors:
            name, part = tensors.popitem()
            start = filled.get(name, 0)
            end = filled[name] = start + len(part)
            if name not in whole:
                rows = math.ceil(len(part) * images / size)
                whole[name] = _empty_rows(part, rows)
            elif end > len(whole[name]):
                whole[name] = torch.cat([whole[name][:start], _empty_rows(part, end)])
            whole[name][start:end] = part
            del part
    return {name: tensor[: filled[name]] for name, tensor in whole.items()}


def _empty_rows(like: Tensor, rows: int) -> Tensor:
    layout = torch.channels_last if lies_channels_last(like) else torch.contiguous_format
    shape = (rows, *like.shape[1:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _tensors(recordings: Mapping[str, Recording]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, recording in recordings.items():
        tensors |= {f"{name}/input{i}": x for i, x in enumerate(recording.inputs)}
        tensors[f"{name}/output"] = recording.output
        if recording.squared_gradient is not None:
            tensors[f"{name}/squared_gradient"] = recording.squared_gradient
    return tensors


def _as_recording(name: str, tensors: Mapping[str, Tensor]) -> Recording:
    inputs = [tensors.get(f"{name}/input{i}") for i in range(2)]
    gradient = tensors.get(f"{name}/squared_gradient")
    if gradient is not None:
        require_gradient(gradient, name, "layer")
    return Recording(tuple(x for x in inputs if x is not None), tensors[f"{name}/output"], gradient)


def _recorded(
    model: QuantizedModel,
    group: Sequence[QuantOperation],
    calibration: Calibration,
    loss: OutputLoss | None,
    draws: int,
    batch_size: int,
) -> dict[str, Tensor]:
    generator = calibration.generator()

    def batches() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for images in calibration.split(batch_size):
            yield len(images), _tensors(_record_batch(model, group, images, loss, draws, generator))

    return gathered(batches(), calibration.n_images)


def _groups(
    model: QuantizedModel,
    operations: Sequence[QuantOperation],
    calibration: Calibration,
    gradients: bool,
) -> Iterator[Sequence[QuantOperation]]:
    first = calibration.whole()[:1]
    single = _record_batch(model, operations, first, None, 1, calibration.generator())
    sizes = {
        name: calibration.n_images * _bytes(recording, gradients)
        for name, recording in single.items()
    }
    most = RECORDED_SHARE * memory.budget()
    # The largest group, joined from batches, and what searching one operation takes beside it.
    require(
        min(sum(sizes.values()), most) + 2 * max(sizes.values()),
        first.device,
        f"recording activations of {calibration.n_images} images",
    )
    group: list[QuantOperation] = []
    used = 0
    for operation in operations:
        size = sizes[operation.name]
        if group and used + size > most:
            yield group
            group, used = [], 0
        group.append(operation)
        used += size
    yield group


def _bytes(recording: Recording, gradients: bool) -> int:
    tensors = (*recording.inputs, recording.output, *((recording.output,) if gradients else ()))
    return sum(t.numel() * t.element_size() for t in tensors)


def _record_batch(
    model: QuantizedModel,
    operations: Sequence[QuantOperation],
    images: Tensor,
    loss: OutputLoss | None,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Recording]:
    wanted = {operation.name for operation in operations}
    inputs: dict[str, tuple[Tensor, ...]] = {}
    outputs: dict[str, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, QuantOperation)
        for tensor in (*args, output):
            check_finite(tensor.detach(), module.name)
        # A detector calls a dense head once per level, the finest first: that one is judged on.
        if module.name in wanted and module.name not in outputs:
            inputs[module.name], outputs[module.name] = tuple(a.detach() for a in args), output

    with ExitStack() as stack, torch.set_grad_enabled(loss is not None):
        # A hook on every operation, wanted or not, so that each pass takes the same path through
        # attention (see `QuantMatMul.idle`) and gives the same digits.
        for operation in model.operations:
            stack.callback(operation.register_forward_hook(hook).remove)
        # The parameters are frozen, so the graph hangs on the images.
        prediction = model(images.clone().requires_grad_(loss is not None))
        gradients: dict[str, Tensor] = {}
        if loss is not None:
            squared = squared_gradients(prediction, list(outputs.values()), loss, draws, generator)
            gradients = dict(zip(outputs, squared, strict=True))
    require_reached((op.name for op in operations), outputs)
    return {n: Recording(inputs[n], outputs[n].detach(), gradients.get(n)) for n in outputs}
