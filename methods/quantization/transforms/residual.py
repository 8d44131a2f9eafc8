"""Rotation of residual streams, with LayerNorm as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.layers import ensured_bias
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import (
    Layer,
    ResidualStream,
    StreamReader,
    StreamWriter,
)
from vit_ptq_bench.methods.quantization.transforms.base import Transform, generator
from vit_ptq_bench.methods.quantization.transforms.hadamard import (
    fixing_random_rotation,
    fixing_rotation,
    has_hadamard,
    missing_width,
)


def rotate_residual(model: QuantizedModel, calibration: Calibration, random: bool = False) -> None:
    """Multiply every token of each residual stream by an orthogonal R with R 1 = 1.

    Mean and variance of a token stay, so LN(R x) = R LN(x) once scales and shifts of the LayerNorms are in
    the layers behind them: no norm changes its kind, as it does where a rotation moves the mean (GLF-Q).
    What writes a stream (patch embedding, projections, fc2, positions and class tokens) is multiplied by R,
    what reads it (qkv, fc1, patch merging, head, a detector's lateral convolutions) by R'. A patch merging
    normalises four tokens at once and commutes with the same R on each of them. Streams that a LayerNorm
    writes channel by channel stay as they are: Swin's first stage.

    Args:
        model: the wrapped model, its quantizers inactive; weights, biases, LayerNorms (scale 1 and shift 0
            afterwards), LayerScales (1 afterwards), learned tokens and padding are changed.
        calibration: its seed decides R, another one for each stream.
        random: draw R from all orthogonal matrices that fix the all-ones vector, else R = H' D H / C with a
            Hadamard matrix H and random signs D, whose entries are all about equally large.

    Raises:
        MethodError: a width without a Hadamard matrix, or a channel that a LayerNorm scales by zero before
            windows that have to be padded.
    """
    name = "rotate-residual-random" if random else "rotate-residual"
    numbers = generator(calibration, name)
    make = fixing_random_rotation if random else fixing_rotation
    for stream in model.structure.streams:
        rotate_stream(stream, make(stream.width, numbers))


@torch.no_grad()
def rotate_stream(stream: ResidualStream, rotation: Tensor) -> None:
    """Multiply every token x of a stream by ``rotation`` R, orthogonal with R 1 = 1: float64 [C, C].

    Raises:
        MethodError: see `rotate_residual`.
    """
    rotation = rotation.to(stream.writers[0].layer.weight.device)
    for reader in stream.readers:
        _fold_affine(reader)
        _rotate_reader(reader, rotation)
    for writer in stream.writers:
        _fold_scale(writer)
        _rotate_outputs(writer.layer, rotation)
    for tokens in stream.tokens:
        tokens.copy_(tokens.double() @ rotation.T)


def _fold_affine(reader: StreamReader) -> None:
    """Move scale and shift of the LayerNorm into the layers behind it.

    W' = W diag(gamma), b' = b + W beta; the value of padded tokens becomes what gives the same as before.
    """
    norm = reader.norm
    if norm is None or not norm.elementwise_affine:
        return
    gamma = norm.weight.double()
    beta = torch.zeros_like(gamma) if norm.bias is None else norm.bias.double()
    if reader.padding is not None:
        if not bool(gamma.all()):
            raise MethodError(
                f"{_names(reader)}: the LayerNorm before it scales a channel by zero, which cannot be folded "
                "where windows are padded; leave rotate-residual out for this model"
            )
        reader.padding.value.copy_((reader.padding.value.double() - beta) / gamma)
    for layer in reader.layers:
        weight = layer.weight.double()
        if bool(beta.any()):
            bias = ensured_bias(layer)
            bias.copy_(bias.double() + weight.flatten(1) @ beta)
        layer.weight.copy_(weight * _along_inputs(gamma, weight))
    norm.weight.fill_(1)
    if norm.bias is not None:
        norm.bias.zero_()


def _names(reader: StreamReader) -> str:
    return ", ".join(getattr(layer, "name", "a layer") for layer in reader.layers)


def _along_inputs(values: Tensor, weight: Tensor) -> Tensor:
    """Values [C] shaped to be multiplied with a weight [C_out, C, ...] along its inputs."""
    return values.view(1, -1, *(1 for _ in weight.shape[2:]))


def _rotate_reader(reader: StreamReader, rotation: Tensor) -> None:
    """W' = W R', with the same R for each of the tokens that a patch merging concatenates."""
    if reader.padding is not None:
        reader.padding.value.copy_(rotation @ reader.padding.value.double())
    one = torch.eye(reader.tokens, dtype=torch.float64, device=rotation.device)
    pair = (rotation, one) if reader.interleaved else (one, rotation)
    whole = torch.kron(*pair)
    for layer in reader.layers:
        weight = layer.weight.double()
        layer.weight.copy_((weight.flatten(1) @ whole.T).view(weight.shape))


def _fold_scale(writer: StreamWriter) -> None:
    """Move the factors of a LayerScale into the layer before it."""
    scale = writer.scale
    if scale is None:
        return
    factors = scale.double()[:, None]
    _times_outputs(writer.layer, lambda rows: factors * rows)
    scale.fill_(1)


def _rotate_outputs(layer: Layer, rotation: Tensor) -> None:
    _times_outputs(layer, lambda rows: rotation @ rows)


def _times_outputs(layer: Layer, change: Callable[[Tensor], Tensor]) -> None:
    """Change the outputs of a layer: ``change`` acts on the rows of weight and bias, [C_out, n]."""
    weight = layer.weight.double()
    layer.weight.copy_(change(weight.flatten(1)).view(weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(change(layer.bias.double()[:, None])[:, 0])


def _problem(model: QuantizedModel, random: bool) -> str | None:
    structure = model.structure
    if not structure.streams:
        why = "; ".join(structure.fixed_streams) or "none is known"
        return f"no residual stream of this model can be rotated ({why})"
    if random:
        return None
    missing = next((s for s in structure.streams if not has_hadamard(s.width)), None)
    if missing is None:
        return None
    return (
        f"the residual stream of stage {missing.stage + 1}: {missing_width(missing.width)}; "
        "rotate-residual-random takes any width"
    )


PROVIDED = {
    "rotate-residual": Transform(rotate_residual, partial(_problem, random=False)),
    "rotate-residual-random": Transform(
        partial(rotate_residual, random=True), partial(_problem, random=True)
    ),
}
