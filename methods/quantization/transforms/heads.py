"""Channels mixed within each head: queries with keys, values with the projection behind the attention."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import AttentionLink
from vit_ptq_bench.methods.quantization.transforms.base import (
    Transform,
    changed_keys,
    generator,
    unknown_attention,
)
from vit_ptq_bench.methods.quantization.transforms.hadamard import (
    hadamard,
    has_hadamard,
    head_rotations,
    missing_width,
    random_head_rotations,
)
from vit_ptq_bench.methods.quantization.transforms.statistics import Probe, observe

QUERIES, KEYS, VALUES = range(3)

VALUE_SHARE = 0.2
"""Of the second moment of the values beside that of the context: both are quantized."""

RIDGE = 0.01
"""Of the mean diagonal, added to the diagonal: a channel that is always zero stays invertible."""


@torch.no_grad()
def rotate_heads(model: QuantizedModel, calibration: Calibration, random: bool = False) -> None:
    """Rotate queries and keys, and values against the projection, per head by H D / sqrt(d).

    H is a Hadamard matrix, D random signs for each head (QuaRot, Ashkboos et al., NeurIPS 2024; GLF-Q has it
    for vision transformers). Scores q k' and the products P V W_p' stay what they are.

    Args:
        model: the wrapped model; weights and biases of qkv and projection are changed.
        calibration: its seed decides the signs.
        random: draw each head's rotation from all orthogonal matrices instead, which takes any width.

    Raises:
        MethodError: a head has a width without a Hadamard matrix.
    """
    numbers = generator(calibration, "rotate-heads-random" if random else "rotate-heads")
    make = random_head_rotations if random else head_rotations
    for link in model.structure.attention_links:
        scores, values = (make(link.heads, _width(link), numbers) for _ in range(2))
        _mix_outputs(link, QUERIES, scores)
        _mix_outputs(link, KEYS, scores)
        _mix_values(link, values, values.transpose(1, 2))


@torch.no_grad()
def equalise_heads(model: QuantizedModel, calibration: Calibration) -> None:
    """Mix the value channels of each head so that all carry the same power, and undo it in the projection.

    With S = E[c c'] + `VALUE_SHARE` E[v v'] of context c and values v, S = U diag(e) U', the mixing
    M = H U' / sqrt(d mean(diag S)) makes the diagonal of M S M' all ones; the projection gets M^-1. In a
    model whose head reads class tokens alone the last block stays: there one token in hundreds counts.

    Args:
        model: the wrapped model; the values' part of qkv, and the projections, are changed.
        calibration: the images that give the moments.

    Raises:
        MethodError: NaN or infinite activations, or a head of a width without a Hadamard matrix.
    """
    links = model.structure.attention_links
    links = links[:-1] if model.structure.class_tokens else links
    contexts = [_context_probe(link) for link in links]
    values = [_value_probe(link) for link in links]
    observe(model, calibration, [*contexts, *values])
    for link, context, value in zip(links, contexts, values, strict=True):
        moment = context.mean + VALUE_SHARE * value.mean
        power = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
        one = torch.eye(moment.shape[-1], dtype=torch.float64, device=moment.device)
        # A head without any power keeps its channels, only turned.
        power = torch.where(power > 0, power, torch.ones_like(power))[:, None, None]
        basis = torch.linalg.eigh(moment + RIDGE * power * one).eigenvectors
        turn = _turn(link).to(moment.device) @ basis.transpose(1, 2)
        scale = power.mul(1 + RIDGE).sqrt()
        _mix_values(link, turn / scale, turn.transpose(1, 2) * scale)


def _context_probe(link: AttentionLink) -> Probe:
    return Probe(link.reader, lambda rows: _moments(rows, link.heads))


def _value_probe(link: AttentionLink) -> Probe:
    width = link.source.weight.shape[0] // 3
    return Probe(link.source, lambda rows: _moments(rows[:, -width:], link.heads), writes=True)


def _moments(rows: Tensor, heads: int) -> Tensor:
    """Second moments within each head, summed over rows [n, heads * d]; float64 [heads, d, d]."""
    x = rows.double().view(len(rows), heads, -1)
    return torch.einsum("nhd,nhe->hde", x, x)


def _turn(link: AttentionLink) -> Tensor:
    width = _width(link)
    turn: Tensor = hadamard(width) / width**0.5
    return turn


def _width(link: AttentionLink) -> int:
    return link.source.weight.shape[0] // (3 * link.heads)


def _mix_outputs(link: AttentionLink, part: int, mixing: Tensor) -> None:
    """Multiply queries, keys or values of each head by ``mixing`` [heads, d, d]."""
    mixing = mixing.to(link.source.weight.device)
    shape = (3, link.heads, _width(link), -1)
    weight = link.source.weight.view(shape)[part]
    weight.copy_(mixing @ weight.double())
    if link.source.bias is not None:
        bias = link.source.bias.view(shape)[part]
        bias.copy_(mixing @ bias.double())


def _mix_values(link: AttentionLink, mixing: Tensor, inverse: Tensor) -> None:
    """Multiply the values by ``mixing`` and the columns of the projection by its inverse."""
    _mix_outputs(link, VALUES, mixing)
    inverse = inverse.to(link.reader.weight.device)
    weight = link.reader.weight.view(-1, link.heads, _width(link))
    weight.copy_(torch.einsum("ohd,hde->ohe", weight.double(), inverse))


def _width_problem(links: list[AttentionLink]) -> str | None:
    for link in links:
        if not has_hadamard(_width(link)):
            return f"the heads of {link.name}: {missing_width(_width(link))}"
    return None


def _normed_context(links: list[AttentionLink]) -> str | None:
    normed = next((link.name for link in links if link.context_normed), None)
    return normed and f"{normed} normalises the context (norm) before the projection"


def _equalising_problem(model: QuantizedModel) -> str | None:
    links = model.structure.attention_links
    return unknown_attention(links) or _normed_context(links) or _width_problem(links)


def _random_problem(model: QuantizedModel) -> str | None:
    links = model.structure.attention_links
    return changed_keys(links) or unknown_attention(links) or _normed_context(links)


def _rotation_problem(model: QuantizedModel) -> str | None:
    width = _width_problem(model.structure.attention_links)
    return _random_problem(model) or (width and f"{width}; rotate-heads-random takes any width")


PROVIDED = {
    "rotate-heads": Transform(rotate_heads, _rotation_problem),
    "rotate-heads-random": Transform(partial(rotate_heads, random=True), _random_problem),
    "equalise-heads": Transform(equalise_heads, _equalising_problem),
}
