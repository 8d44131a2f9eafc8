"""Range rules that search two numbers of a grid: both ends of a range, or largest level and base."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped, minmax_rule
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    fake_quantize,
    widened,
)
from vit_ptq_bench.methods.quantization.quantizers.log_grid import LogGridQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

Triple = tuple[Tensor, Tensor, Tensor]

SAMPLES = 60_000
"""Entries of a group that a search looks at."""

CHUNK_ENTRIES = 2**17
"""Entries quantized at a time: half a megabyte, which stays in a core's cache."""

FACTORS = 24
"""Factors on one end of a range, from 0.1 to 1."""

COUNTED = 20.0
"""Behind GELU, entries from here up do not count: few huge ones would own the squared error."""

GELU_STEPS = {
    2: (0.25, 0.5, 0.75, 1.0),
    3: (1.0, 1.5, 2.0, 3.0),
    4: (2.0, 3.0, 4.0, 5.0),
    5: (3.0, 4.0, 6.0, 8.0),
    6: (4.0, 6.0, 8.0, 10.0, 12.0),
    7: (8.0, 12.0, 16.0, 20.0, 24.0),
    8: (16.0, 24.0, 32.0, 40.0, 48.0),
}
"""Bits -> steps per octave tried behind GELU."""

GELU_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)
"""Largest levels tried behind GELU, as shares of the largest entry."""


def sampled(groups: Tensor, most: int = SAMPLES) -> Tensor:
    """Return at most ``most`` entries of each row of ``groups`` [G, N], taken at one stride.

    The stride has no divisor in common with N, so that it meets every channel, token and image alike.
    """
    count = groups.shape[1]
    if count <= most:
        return groups
    stride = math.ceil(count / most)
    while math.gcd(stride, count) > 1:
        stride += 1
    return groups[:, ::stride].contiguous()


def places_of(entries: Tensor, borders: Tensor) -> Tensor:
    """Return `torch.searchsorted`; on a CPU numpy's, half as long, as it goes on from the last border."""
    if entries.device.type != "cpu":
        return torch.searchsorted(entries, borders)
    return torch.from_numpy(np.searchsorted(entries.numpy(), borders.numpy()))


def uniform_errors(
    groups: Tensor, scale: Tensor, zero_point: Tensor, code_range: tuple[int, int]
) -> Tensor:
    """Return the squared error of uniform grids on the entries of each group.

    Args:
        groups: [G, N].
        scale, zero_point: of K candidates, [K, G].
        code_range: lowest and highest code.

    Returns:
        [K, G].
    """
    at_once = max(1, CHUNK_ENTRIES // groups.numel())
    errors = [
        fake_quantize(groups, s[..., None], z[..., None], code_range)
        .sub_(groups)
        .square_()
        .sum(dim=-1)
        for s, z in zip(torch.split(scale, at_once), torch.split(zero_point, at_once), strict=True)
    ]
    return torch.cat(errors)


def two_ended_rule(factors: int = FACTORS, rounds: int = 2) -> RangeRule:
    """Return a rule that shrinks the two ends of a range separately to the least squared error per group.

    Coordinate descent from the extreme values: the best of ``factors`` factors between 0.1 and 1 for the low
    end, then for the high end, ``rounds`` times, on `SAMPLES` entries; the zero point is whole. Behind GELU
    entries from `COUNTED` up do not count. Quantizers of other forms than uniform get the extreme values.
    """
    shares = torch.linspace(0.1, 1, factors)

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        if not isinstance(quantizer, UniformQuantizer):
            minmax_rule(site, x)
            return
        groups = grouped(x, quantizer)
        if site.key == "fc2.input":
            groups = groups.masked_fill(groups >= COUNTED, 0)  # zero is on every grid
        ends = widened(*torch.aminmax(groups, dim=1))
        error = _range_error(quantizer, sampled(groups))
        kept = [torch.ones_like(end) for end in ends]
        for which in (0, 1) * rounds:
            tried = [share[None].expand(factors, -1) for share in kept]
            tried[which] = shares.to(x)[:, None].expand_as(tried[which])
            low, high = (share * end for share, end in zip(tried, ends, strict=True))
            kept[which] = shares.to(x)[error(low, high).argmin(dim=0)]
        quantizer.set_range(kept[0] * ends[0], kept[1] * ends[1])

    return rule


def _range_error(quantizer: UniformQuantizer, groups: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function from candidate ranges, both [K, G], to their errors [K, G]."""

    def error(low: Tensor, high: Tensor) -> Tensor:
        return uniform_errors(groups, *quantizer.grid_over(low, high), quantizer.code_range)

    return error


def shifted_log_rule(
    steps: Sequence[float] | None = None, shares: Sequence[float] = GELU_SHARES
) -> RangeRule:
    """Return a rule for `ShiftedLogQuantizer` and `ShiftedAdaLogQuantizer`, by the squared error of y.

    Of all pairs of steps per octave and largest level the one of least squared error per group on `SAMPLES`
    entries; entries from `COUNTED` up do not count.

    Args:
        steps: per octave, tried; None: those of `GELU_STEPS` for the quantizer's bits.
        shares: largest levels tried, as shares of the largest y that counts.
    """

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        assert isinstance(quantizer, LogGridQuantizer)
        groups = grouped(x, quantizer)
        top = groups.amax(dim=1).add(quantizer.shift).clamp(1e-3, COUNTED)
        entries = sampled(groups)
        counts = entries.lt(COUNTED - quantizer.shift).to(x.dtype)
        probe = type(quantizer)(quantizer.spec, quantizer.site, axis=0)
        best = torch.full_like(top, torch.inf), top, top
        for k in steps or GELU_STEPS[quantizer.spec.bits]:
            for share in shares:
                found = top * share, torch.full_like(top, k)
                probe.set_levels(*found)
                error = probe.fake_quantize(entries).sub_(entries).square_().mul_(counts).sum(dim=1)
                best = better(best, (error, *found))
        quantizer.set_levels(*best[1:])

    return rule


def better(first: Triple, second: Triple) -> Triple:
    """Return, per group, that of two triples of values ([G] each) whose own first value is smaller."""
    smaller = second[0] < first[0]
    pairs = zip(first, second, strict=True)
    kept = tuple(torch.where(smaller, new, old) for old, new in pairs)
    return kept[0], kept[1], kept[2]
