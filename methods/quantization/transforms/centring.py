"""Keys without their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.transforms.base import (
    Transform,
    changed_keys,
    unknown_attention,
)
from vit_ptq_bench.methods.quantization.transforms.statistics import Probe, observe


@torch.no_grad()
def centre_keys(model: QuantizedModel, calibration: Calibration) -> None:
    """Subtract from each channel of the keys its mean over the calibration images, in the bias of qkv.

    A constant m on all keys adds q m' to all scores of a query, which the softmax does not see.

    Args:
        model: the wrapped model, its quantizers inactive; biases of qkv layers are made and changed.
        calibration: the images.

    Raises:
        MethodError: NaN or infinite activations; the layer is named.
    """
    links = model.structure.attention_links
    probes = [Probe(link.source, _key_sums, writes=True) for link in links]
    for link, probe in zip(links, observe(model, calibration, probes), strict=True):
        bias = link.source.ensure_bias()
        width = len(bias) // 3
        bias[width : 2 * width].sub_(probe.mean)


def _key_sums(rows: Tensor) -> Tensor:
    width = rows.shape[1] // 3
    return rows[:, width : 2 * width].sum(dim=0, dtype=torch.float64)


def _problem(model: QuantizedModel) -> str | None:
    links = model.structure.attention_links
    return unknown_attention(links) or changed_keys(links)


PROVIDED = {"centre-keys": Transform(centre_keys, _problem)}
