"""Range rules: each chooses the range of a quantizer from the tensor it will quantize.

All work on every channel, head or the whole tensor at once: a tensor is brought into the form
[groups, elements] by `grouped`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

HISTOGRAM_BINS = 4096
"""Bins of the squared-error histogram: at 8 bits still 16 per quantization step."""

HISTOGRAM_FROM = 2**16
"""Elements per group from which the squared error is taken from a histogram."""

RUN = 32
"""Entries in a row of a tensor whose extreme entry says whether any of them can be in its tail."""

EXPONENTS = 4
"""Powers of two that a channel of the Power-of-Two Factor chooses from, as in the paper."""


def grouped(x: Tensor, quantizer: Quantizer) -> Tensor:
    """Return ``x`` as [groups, elements], one group per scale of ``quantizer``."""
    if quantizer.axis is None:
        return x.reshape(1, -1)
    if quantizer.spec.granularity == "projection":
        return x.reshape(3, -1)
    return x.movedim(quantizer.axis, 0).flatten(1)


def minmax_rule(site: Site, x: Tensor) -> None:
    """Cover the extreme values."""
    low, high = torch.aminmax(grouped(x, site.quantizer), dim=1)
    site.quantizer.set_range(low, high)


def power_of_two_factor_rule(site: Site, x: Tensor) -> None:
    """Give each channel the layer's step divided by the power of two of least squared error.

    ``D_c = D / 2^(E - 1 - e_c)``, e_c in 0 .. E - 1, E being `EXPONENTS`, D and the zero point from the
    extreme values of all channels (FQ-ViT, Power-of-Two Factor, equations 4 to 8).

    Args:
        site: with a uniform quantizer per channel of the last dimension.
        x: [..., C].
    """
    quantizer = site.quantizer
    assert isinstance(quantizer, UniformQuantizer)
    channels = x.shape[-1]
    low, high = torch.aminmax(x)
    whole = UniformQuantizer(replace(quantizer.spec, granularity="tensor"), site.name)
    whole.set_range(low.reshape(1), high.reshape(1))
    steps = [whole.scale.expand(channels) / 2**shift for shift in range(EXPONENTS - 1, -1, -1)]
    errors = []
    for step in steps:
        quantizer.set_parameters(step, whole.zero_point.expand(channels))
        error = quantizer.fake_quantize(x).sub_(x).square_()
        errors.append(error.flatten(0, -2).sum(dim=0))
    best = torch.stack(errors).argmin(dim=0)
    chosen = torch.stack(steps).gather(0, best[None])[0]
    quantizer.set_parameters(chosen, whole.zero_point.expand(channels))


def percentile_ranges(groups: Tensor, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return exact quantiles of both tails, linearly interpolated.

    Args:
        groups: [G, N].
        fractions: K numbers in (0.5, 1].

    Returns:
        (low, high), each [K, G]: the (1 - fraction) and the fraction quantile.

    Only the tails are sorted, so there is no limit on N (`torch.quantile` has one).
    """
    n = groups.shape[1]
    tail = min(n, int((1 - min(fractions)) * (n - 1)) + 2)
    largest, smallest = _tail(groups, tail, True), _tail(groups, tail, False)
    low = torch.stack([_from_end(smallest, (1 - f) * (n - 1)) for f in fractions])
    high = torch.stack([_from_end(largest, (1 - f) * (n - 1)) for f in fractions])
    return low, high


def _tail(groups: Tensor, count: int, largest: bool) -> Tensor:
    """Return the ``count`` largest or smallest entries of each row of ``groups`` [G, N], in order.

    They lie in the ``count`` runs of `RUN` entries with the most extreme entry each, so where those are few
    of all, a row is looked at once and only they are sorted.
    """
    whole = groups.shape[1] // RUN * RUN
    if count * RUN * 4 <= groups.shape[1]:
        runs = torch.unflatten(groups[:, :whole], 1, (-1, RUN))
        extremes = runs.amax(dim=2) if largest else runs.amin(dim=2)
        index = extremes.topk(count, dim=1, largest=largest).indices
        kept = runs.gather(1, index[..., None].expand(-1, -1, RUN)).flatten(1)
        groups = torch.cat([kept, groups[:, whole:]], dim=1)
    return groups.topk(count, dim=1, largest=largest).values


def _from_end(ordered: Tensor, position: float) -> Tensor:
    index = min(int(position), ordered.shape[1] - 1)
    following = min(index + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, index], ordered[:, following], position - index)


def percentile_rule(fraction: float) -> RangeRule:
    """Return a rule that covers the (1 - fraction) .. fraction quantiles."""

    def rule(site: Site, x: Tensor) -> None:
        low, high = percentile_ranges(grouped(x, site.quantizer), [fraction])
        site.quantizer.set_range(low[0], high[0])

    return rule


def best_percentile_rule(fractions: Sequence[float]) -> RangeRule:
    """Return a rule that takes, of several percentiles, the one of least squared error per group."""

    def rule(site: Site, x: Tensor) -> None:
        groups = grouped(x, site.quantizer)
        low, high = percentile_ranges(groups, fractions)
        set_best_range(site.quantizer, x, low, high)

    return rule


def shrink_rule(steps: int = 90, step: float = 0.01) -> RangeRule:
    """Return a rule that shrinks (min, max) together by ``step`` at a time (OMSE)."""

    def rule(site: Site, x: Tensor) -> None:
        groups = grouped(x, site.quantizer)
        low, high = torch.aminmax(groups, dim=1)
        factors = 1 - step * torch.arange(steps, device=x.device, dtype=x.dtype)
        set_best_range(site.quantizer, x, factors[:, None] * low, factors[:, None] * high)

    return rule


def set_best_range(quantizer: Quantizer, x: Tensor, low: Tensor, high: Tensor) -> None:
    """Give ``quantizer`` the candidate range of least squared error, chosen per group.

    Args:
        quantizer: of any form that has a range.
        x: the tensor at its site.
        low, high: [candidates, groups].
    """
    errors = torch.stack(
        [range_errors(quantizer, x, lo, hi) for lo, hi in zip(low, high, strict=True)]
    )
    best = errors.argmin(dim=0)
    groups = torch.arange(low.shape[1], device=low.device)
    quantizer.set_range(low[best, groups], high[best, groups])


def range_errors(quantizer: Quantizer, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the summed squared quantization error per group ([groups]) for one range."""
    quantizer.set_range(low, high)
    error = quantizer.fake_quantize(x).sub_(x).square_()
    return grouped(error, quantizer).sum(dim=1)


def histogram_shrink_rule(steps: int = 90, step: float = 0.01) -> RangeRule:
    """Return `shrink_rule` with the error of large per-tensor activations taken from a histogram.

    One pass builds the histogram, after which a candidate costs bins instead of elements.
    """
    exact = shrink_rule(steps, step)

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        uniform = isinstance(quantizer, UniformQuantizer)
        if not uniform or quantizer.axis is not None or x.numel() < HISTOGRAM_FROM:
            exact(site, x)
            return
        centres, counts = histogram(x)
        low, high = torch.aminmax(x.reshape(1, -1), dim=1)
        factors = 1 - step * torch.arange(steps, device=x.device, dtype=x.dtype)
        errors = []
        for factor in factors:
            quantizer.set_range(low * factor, high * factor)
            errors.append((counts * (quantizer.fake_quantize(centres) - centres).square()).sum())
        best = factors[torch.stack(errors).argmin()]
        quantizer.set_range(low * best, high * best)

    return rule


def histogram(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (centres, counts), each [`HISTOGRAM_BINS`], of all values of ``x`` between its extremes."""
    low, high = (float(v) for v in torch.aminmax(x))
    bins = HISTOGRAM_BINS
    counts = torch.histc(x.reshape(-1), bins=bins, min=low, max=high)
    width = (high - low) / bins
    centres = low + width * (torch.arange(bins, device=x.device, dtype=x.dtype) + 0.5)
    return centres, counts
