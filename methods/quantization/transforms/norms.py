"""Scales and shifts that move from LayerNorm outputs into the linear layers behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.calibration.range_rules import percentile_ranges
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import NormLink
from vit_ptq_bench.methods.quantization.transforms.base import Transform

SMALLEST = 1e-5
"""Lower bound of maxima, of half ranges and of smoothing scales."""

ALPHA = 0.5
"""SmoothQuant's usual migration strength."""

TAIL = 0.002
"""Share of a channel's entries that may lie beyond either end of its range."""


def smooth_norm_outputs(model: QuantizedModel, calibration: Calibration, alpha: float) -> None:
    """Divide each channel of each quantized LayerNorm output by s and multiply the weight's column by it.

    ``s_j = max|X_j|^alpha / max|W_:j|^(1 - alpha)`` (SmoothQuant, Xiao et al., ICML 2023, equation 4). The
    full-precision function stays the same, so any calibration can follow.

    Args:
        model: the wrapped model, its quantizers inactive; LayerNorms and their readers are changed.
        calibration: the images, shown as one batch.
        alpha: migration strength in [0, 1]; 0 leaves the activations as they are.

    Raises:
        MethodError: NaN or infinite activations or weights; the site is named.
    """
    links = _quantized(model.structure.norm_links)
    for link, largest in _of_outputs(model, calibration, links, _maxima):
        weight = link.reader.weight.abs().amax(dim=0).clamp_min(SMALLEST)
        check_finite(weight, f"{link.reader.name}.weight")
        scale = largest.clamp_min(SMALLEST) ** alpha / weight ** (1 - alpha)
        fold_into_reader(link, scale.clamp_min(SMALLEST), torch.zeros_like(scale))


def shift_norms(model: QuantizedModel, calibration: Calibration) -> None:
    """Centre each channel of the quantized LayerNorm outputs and make their ranges equally wide.

    Per channel, with the upper and lower `TAIL` quantiles hi and lo: m = (hi + lo) / 2 is subtracted, and
    what is left divided by r = (hi - lo) / 2 over its geometric mean, so one range per tensor fits all
    channels (RepQ-ViT's reparameterization before anything is calibrated, with percentiles in the place of
    scales). In a model whose head reads class tokens alone the last block's second LayerNorm stays: there
    one token in hundreds counts.

    Args:
        model: the wrapped model, its quantizers inactive; LayerNorms and their readers are changed.
        calibration: the images, shown as one batch.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    links = model.structure.norm_links
    links = links[:-1] if model.structure.class_tokens else links
    for link, ends in _of_outputs(model, calibration, _quantized(links), _ranges):
        low, high = ends
        half = ((high - low) / 2).clamp_min(SMALLEST)
        fold_into_reader(link, half / half.log().mean().exp(), -(high + low) / 2)


def _quantized(links: Sequence[NormLink]) -> list[NormLink]:
    return [link for link in links if not link.reader.input_quantizer.spec.is_float]


def _maxima(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=0)


def _ranges(rows: Tensor) -> Tensor:
    """Lower and upper quantile of each channel of rows [n, C]; [2, C]."""
    low, high = percentile_ranges(rows.T, (1 - TAIL,))
    return torch.stack([low[0], high[0]])


@torch.no_grad()
def _of_outputs(
    model: QuantizedModel,
    calibration: Calibration,
    links: Sequence[NormLink],
    statistic: Callable[[Tensor], Tensor],
) -> list[tuple[NormLink, Tensor]]:
    """What ``statistic`` makes of the output of each linked LayerNorm, as rows [n, C]."""
    found: dict[str, Tensor] = {}

    def see(link: NormLink, module: Any, inputs: tuple[Tensor, ...]) -> None:
        check_finite(inputs[0], f"{link.reader.name}.input")
        found[link.reader.name] = statistic(inputs[0].flatten(0, -2))

    patch_embed = model.weighted_operations()[0]
    check_finite(calibration.whole(), f"{patch_embed.name}.input")
    with ExitStack() as stack:
        for link in links:
            watch(stack, link.reader, partial(see, link))
        model(calibration.whole())
    return [(link, found[link.reader.name]) for link in links]


def _problem(model: QuantizedModel) -> str | None:
    if model.structure.norm_links:
        return None
    return "no LayerNorm with a weight and a linear layer behind it is known in this model"


PROVIDED = {
    "shift-norms": Transform(shift_norms, _problem),
    "smooth-norms": Transform(partial(smooth_norm_outputs, alpha=ALPHA), _problem),
}
