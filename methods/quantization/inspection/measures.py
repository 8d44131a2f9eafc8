"""Figures of one tensor: how uneven its channels are, and what quantization makes of it.

Sources: channel mismatch and average precision, "Do all MobileNets quantize poorly?" (CVPRW 2021); share of
clipped activations, SatNL, and asymmetry, SymReg (ECCVW 2022), all from their abstracts. Sums are in float64.
"""

import math

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.model.layers import QuantConv2d, QuantMatMul
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer


def channels_of(site: Site, x: Tensor) -> Tensor:
    """Return the tensor at a site by its channels, [channels, entries].

    Of a weight they are the output channels, of the input of a linear layer or convolution its channels, of
    queries, keys and values the dimensions of each head, of an attention map the heads.

    Args:
        site: whose tensor it is.
        x: as it arrives at the site's quantizer.
    """
    if site.is_weight:
        return x.flatten(1)
    if isinstance(site.operation, QuantMatMul):
        if site.key == "attention":
            return x.movedim(1, 0).flatten(1)
        return x.permute(1, 3, 0, 2).flatten(0, 1).flatten(1)
    axis = 1 if isinstance(site.operation, QuantConv2d) else -1
    return x.movedim(axis, 0).flatten(1)


def channel_ranges(channels: Tensor) -> Tensor:
    """Return the range (largest less smallest entry) of each row of ``channels`` [C, N], float64 [C]."""
    low, high = torch.aminmax(channels, dim=1)
    return high.double() - low.double()


def channel_mismatch(channels: Tensor) -> float | None:
    """Return the largest over the mean range of the channels [C, N]; None where all are constant.

    1 where all channels have one range; C where one alone has any.
    """
    ranges = channel_ranges(channels)
    return _ratio(ranges.max(), ranges.mean())


def average_precision(channels: Tensor) -> float | None:
    """Return the mean range of the channels [C, N] over that of the tensor; None for a constant tensor.

    Of the levels of one grid for the whole tensor a channel uses this share on average: 1 is all of them.
    """
    whole = channel_ranges(channels.reshape(1, -1))
    return _ratio(channel_ranges(channels).mean(), whole[0])


def asymmetry(x: Tensor) -> float | None:
    """Return ``|mean| / standard deviation`` of all entries; None for a constant tensor."""
    mean = x.mean(dtype=torch.float64)
    near = mean.to(
        x.dtype
    )  # the squares are small numbers then, however far from zero the tensor lies
    variance = (x - near).square_().mean(dtype=torch.float64) - (mean - near.double()).square()
    return _ratio(mean.abs(), variance.clamp_min(0).sqrt())


def sqnr(x: Tensor, quantized: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio ``10 log10(|x|^2 / |x^ - x|^2)``, dB.

    Args:
        x: the tensor.
        quantized: what quantization makes of it, of the same shape.

    Returns:
        Infinite where nothing is lost, minus infinity where all of nothing is.
    """
    noise = float((quantized - x).square_().sum(dtype=torch.float64))
    signal = float(x.square().sum(dtype=torch.float64))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def clipped_share(x: Tensor, quantizer: Quantizer) -> float | None:
    """Return the share of the entries that lie beyond the quantizer's grid; see `Quantizer.reach`.

    None where the form does not say how far its grid reaches.
    """
    reach = quantizer.reach(x)
    if reach is None:
        return None
    low, high = reach
    return int(((x < low) | (x > high)).sum()) / x.numel()


def _ratio(above: Tensor, below: Tensor) -> float | None:
    return float(above / below) if float(below) > 0 else None
