"""Gradients of a loss of the prediction at the outputs of layers, row by row, of the full-precision model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration import memory
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss, require_gradient
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite, require_reached
from vit_ptq_bench.methods.quantization.calibration.recording import (
    RECORDED_SHARE,
    cached,
    gathered,
)
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

Kept = Literal["power", "gradient"]
"""What is kept of a row's gradient: its squared norm, or all of it."""


def row_powers(
    model: QuantizedModel,
    calibration: Calibration,
    layers: Sequence[WeightedOperation],
    draws: int = 1,
    batch_size: int = 8,
) -> dict[str, Tensor]:
    """Return the squared norm of the gradient of `fisher_loss` at each output row of each layer.

    One forward pass, and ``draws`` backward passes, for all layers together.

    Args:
        model: with its full-precision weights; its quantizers are switched off.
        calibration: the images; their seed decides the draws.
        layers: that the prediction of images depends on, each applied once.
        draws: of the loss, at least 1.
        batch_size: images per forward and backward pass.

    Returns:
        By the layer's name float32 [images, draws, rows of an image], rows in the order of
        `WeightedOperation.columns`.

    Raises:
        MethodError: no gradient reaches a layer, or an output is NaN or infinite; the layer is named.
    """
    return _gradients(model, calibration, layers, draws, batch_size, "power")


def row_gradients(
    model: QuantizedModel,
    calibration: Calibration,
    layers: Sequence[WeightedOperation],
    draws: int = 1,
    batch_size: int = 8,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's name with the gradients of `fisher_loss` at its output rows.

    Layers are taken in groups of at most `RECORDED_SHARE` of `memory.budget`, with passes of their own when
    the first of a group is asked for. The draws are the same in all passes, and those of `row_powers`.

    Args and errors: as in `row_powers`; also `MethodError` where one layer's gradients cannot fit.

    Yields:
        float32 [images, draws, rows of an image, C_out], in the order of ``layers``.
    """
    for group in _groups(model, calibration, layers, draws):
        found = _gradients(model, calibration, group, draws, batch_size, "gradient")
        for layer in group:
            yield layer.name, found.pop(layer.name)
        memory.give_back()


def _gradients(
    model: QuantizedModel,
    calibration: Calibration,
    layers: Sequence[WeightedOperation],
    draws: int,
    batch_size: int,
    kept: Kept,
) -> dict[str, Tensor]:
    model.activate(weights=False, activations=False)
    names = [layer.name for layer in layers]

    def batches() -> Iterator[tuple[int, dict[str, Tensor]]]:
        generator = calibration.generator()
        for images in calibration.split(batch_size):
            yield len(images), _of_batch(model, layers, images, draws, generator, kept)

    words = ("gradients at outputs", kept, names, draws, batch_size, calibration.seed)
    found = cached(model, calibration, words, lambda: gathered(batches(), calibration.n_images))
    for name in names:
        require_gradient(found[name].abs(), name, "layer")
    return found


def _of_batch(
    model: QuantizedModel,
    layers: Sequence[WeightedOperation],
    images: Tensor,
    draws: int,
    generator: torch.Generator,
    kept: Kept,
) -> dict[str, Tensor]:
    """What is kept of one mini-batch's gradients, [images, draws, rows] or [images, draws, rows, C_out]."""
    with torch.enable_grad():
        # The parameters are frozen, so the graph hangs on the images.
        prediction, outputs = _watched(model, layers, images.clone().requires_grad_())
        require_reached((layer.name for layer in layers), outputs)
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    watched = [outputs[layer.name] for layer in layers]
    for draw in range(draws):
        with torch.enable_grad():
            loss = fisher_loss(prediction, generator)
        gradients = torch.autograd.grad(loss, watched, retain_graph=draw < draws - 1)
        for layer, gradient in zip(layers, gradients, strict=True):
            rows = gradient.movedim(layer.output_axis, -1)
            rows = rows.reshape(len(images), -1, rows.shape[-1])
            found[layer.name].append(rows.square().sum(-1) if kept == "power" else rows)
    return {name: torch.stack(parts, dim=1) for name, parts in found.items()}


def _watched(
    model: QuantizedModel, layers: Sequence[WeightedOperation], images: Tensor
) -> tuple[Tensor | tuple[Tensor, ...], dict[str, Tensor]]:
    """What the model says of images, and the outputs of some layers by their names."""
    outputs: dict[str, Tensor] = {}

    def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, WeightedOperation)
        check_finite(output.detach(), module.name)
        outputs[module.name] = output

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(hook).remove)
        return model(images), outputs


def _groups(
    model: QuantizedModel,
    calibration: Calibration,
    layers: Sequence[WeightedOperation],
    draws: int,
) -> Iterator[Sequence[WeightedOperation]]:
    """Cut layers into groups whose gradients memory has room for; one layer may be a group of any size."""
    with torch.no_grad():
        _, outputs = _watched(model, layers, calibration.whole()[:1])
    sizes = {
        name: calibration.n_images * draws * output.numel() * output.element_size()
        for name, output in outputs.items()
    }
    most = RECORDED_SHARE * memory.budget()
    words = f"recording gradients of {calibration.n_images} images"
    memory.require(max(*sizes.values(), min(sum(sizes.values()), most)), model.device, words)
    group: list[WeightedOperation] = []
    for layer in layers:
        if group and sum(sizes[own.name] for own in [*group, layer]) > most:
            yield group
            group = []
        group.append(layer)
    yield group
