"""The form of a transform."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import AttentionLink


def never(model: QuantizedModel) -> str | None:
    """Return None: the problem of a transform that any model can take."""
    return None


@dataclass(frozen=True)
class Transform:
    """Changes weights, norms and tokens of a wrapped model so that its full-precision function stays.

    One that changes the function says so in its card (`names.TransformCard.other_operation`).
    A module of this package provides its transforms in a mapping ``PROVIDED``, under the names by which
    `names.TRANSFORMS` knows them. All that a transform changes must be in the model's state, so that a saved
    model is the transformed one: parameters, biases made by `model.layers.ensured_bias`, `Padding`.

    Attributes:
        apply: acts on the model, its quantizers inactive; what it chooses follows from the calibration
            images, and what is random from their seed.
        problem: why it cannot act on a model, in words, or None.
    """

    apply: Callable[[QuantizedModel, Calibration], None]
    problem: Callable[[QuantizedModel], str | None] = never


def unknown_attention(links: Sequence[AttentionLink]) -> str | None:
    """Return in words that a model has no attention that is known, or None."""
    return None if links else "no attention with a common qkv layer is known in this model"


def changed_keys(links: Sequence[AttentionLink]) -> str | None:
    """Return in words that what the qkv layers give are not the keys that meet the queries, or None."""
    for link in links:
        if link.keys_normed:
            return f"{link.name} normalises queries and keys behind qkv"
        if link.keys_rotated:
            return f"{link.name} rotates queries and keys by their positions behind qkv"
    return None


def generator(calibration: Calibration, name: str) -> torch.Generator:
    """Return a CPU generator for the transform ``name``, so that no two draw the same numbers."""
    return torch.Generator().manual_seed((zlib.crc32(name.encode()) << 32) + calibration.seed)
