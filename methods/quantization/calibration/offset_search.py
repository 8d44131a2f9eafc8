"""The range rule of `OffsetLogQuantizer`: its three numbers by the squared error of all entries at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.calibration.range_search import (
    COUNTED,
    places_of,
    sampled,
    shifted_log_rule,
)
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.offset_log import OffsetLogQuantizer
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM

OFFSETS = (0.2, 0.23, 0.27, 0.32, 0.4, 0.5, 0.7, 1.0, 1.5)
"""Offsets that are tried."""

SHARES = tuple(10 ** (-1.2 * i / 39) for i in range(40))
"""Largest levels that are tried, as shares of the way from GELU's minimum to the largest entry."""

SPANS = tuple(0.5 + 0.025 * i for i in range(25))
"""Octaves from the largest level to the lowest that are tried, as shares of those to GELU's minimum."""


class SortedEntries:
    """Entries in order, with prefix sums: the squared error of a grid costs one look-up for each border."""

    def __init__(self, entries: Tensor) -> None:
        self._entries = entries.double().sort().values
        self._first = _prefix(self._entries)
        self._second = _prefix(self._entries.square())

    def errors(self, levels: Tensor, borders: Tensor) -> Tensor:
        """Return the sum of squared errors of grids.

        Args:
            levels: in ascending order, float64 [K, L].
            borders: between them, float64 [K, L - 1].

        Returns:
            [K].
        """
        inner = places_of(self._entries, borders.contiguous())
        ends = F.pad(F.pad(inner, (1, 0)), (0, 1), value=len(self._entries))
        count = ends.diff(dim=1)
        first, second = (sums[ends].diff(dim=1) for sums in (self._first, self._second))
        return (second - 2 * levels * first + levels.square() * count).sum(dim=1)


def _prefix(values: Tensor) -> Tensor:
    return F.pad(values.cumsum(dim=0), (1, 0))


def offset_log_rule() -> RangeRule:
    """Return a rule for `OffsetLogQuantizer`: scale, base and offset of least squared error per group.

    On all combinations of `OFFSETS`, `SHARES` and `SPANS`; entries from `COUNTED` up do not count.
    """

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        assert isinstance(quantizer, OffsetLogQuantizer)
        found = [_search(own, quantizer.spec.bits) for own in sampled(grouped(x, quantizer))]
        scale, steps, offset = (torch.stack(values) for values in zip(*found, strict=True))
        quantizer.set_offset(offset)
        quantizer.set_levels(scale, steps)

    return rule


def _search(entries: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return largest level, steps per octave and offset, each a scalar."""
    entries = entries[entries < COUNTED]
    top = entries.max().double().clamp_min(1e-3)
    tried = (torch.tensor(values, dtype=torch.float64) for values in (OFFSETS, SHARES, SPANS))
    offset, share, span = torch.cartesian_prod(*tried).to(entries.device).T
    scale = (top + GELU_MINIMUM) * share - GELU_MINIMUM + offset
    steps = (2**bits - 1) / ((scale / (offset - GELU_MINIMUM)).log2() * span)
    codes = torch.arange(2**bits - 1, -1, -1, device=entries.device)
    levels = scale[:, None] * torch.exp2(-codes / steps[:, None])
    borders = scale[:, None] * torch.exp2(-(codes[1:] + 0.5) / steps[:, None])
    errors = SortedEntries(entries).errors(levels - offset[:, None], borders - offset[:, None])
    best = errors.argmin()
    return scale[best], steps[best], offset[best]


def gelu_rule() -> RangeRule:
    """Return a rule for all logarithmic quantizers behind GELU: `offset_log_rule` or `shifted_log_rule`."""
    offset, shifted = offset_log_rule(), shifted_log_rule()

    def rule(site: Site, x: Tensor) -> None:
        (offset if isinstance(site.quantizer, OffsetLogQuantizer) else shifted)(site, x)

    return rule
