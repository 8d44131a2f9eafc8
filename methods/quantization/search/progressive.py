"""Fast progressive combining search: two numbers of a grid at once, coarse pairs first, then finer scales.

Source: AdaLog (Wu et al., ECCV 2024), section on FPCS. Pairs are a scale and a zero point, or a largest level
and a base.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped, percentile_ranges
from vit_ptq_bench.methods.quantization.calibration.range_search import (
    COUNTED,
    sampled,
    uniform_errors,
)
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    TINY,
    fake_quantize,
    spread,
    widened,
)
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.log_grid import (
    LARGEST_Q,
    ROOTS,
    SMALLEST_Q,
    LogGridQuantizer,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

Pairs = tuple[Tensor, Tensor]
"""Scales, and zero points or steps per octave, of K candidates of each group: both [K, G]."""

Errors = Callable[[Pairs], Tensor]
"""Errors of candidates, [K, G]."""

NARROWEST = 0.9
"""Quantile whose range is the narrowest tried; the widest is that of the extreme values."""

FEWEST_SPANS = 8
"""Spans that a zero point is combined with at least: of 128 candidates, 16 zero points at most."""

BASES, BASES_TRIED = 8, 0.25
"""Bases of a logarithmic grid that are combined with scales; how many are tried, as a share of the first
candidates: of AdaLog's 129 every fourth, which differ by less than a tenth of a step."""

SAMPLED_IN_ALL = 2**15
"""Entries of all groups of an activation together that a search by its own error looks at."""


@dataclass(frozen=True)
class Progression:
    """Numbers of a fast progressive combining search, AdaLog's by default.

    Attributes:
        first: candidates at first.
        kept: of them, the best, around which others are tried.
        finer: scales tried around each that is kept.
        shrink: what the distance of two scales is divided by each time.
        steps: how many times.
    """

    first: int = 128
    kept: int = 16
    finer: int = 8
    shrink: float = 7.5
    steps: int = 4


@dataclass(frozen=True)
class Start:
    """The first candidates of a quantizer.

    Attributes:
        pairs: the candidates.
        distance: of neighbouring scales, [G].
    """

    pairs: Pairs
    distance: Tensor


def progressive(start: Start, errors: Errors, progression: Progression) -> Pairs:
    """Return scale and second number of the best candidate of each group, both [G].

    The best ``kept`` candidates are kept; around each, ``finer`` scales are tried at a distance that shrinks,
    with the same second number, and the best of old and new are kept again.
    """
    p = progression
    pairs, found = _best(start.pairs, errors(start.pairs), p.kept)
    distance = start.distance
    for _ in range(p.steps):
        distance = distance / p.shrink
        offsets = torch.arange(p.finer, device=distance.device) - (p.finer - 1) / 2
        moved = pairs[0][:, None] + (offsets[:, None] * distance)
        finer = (
            moved.clamp_min(TINY).flatten(0, 1),
            pairs[1][:, None].expand_as(moved).flatten(0, 1),
        )
        both = torch.cat([pairs[0], finer[0]]), torch.cat([pairs[1], finer[1]])
        pairs, found = _best(both, torch.cat([found, errors(finer)]), p.kept)
    return pairs[0][0], pairs[1][0]


def _best(pairs: Pairs, errors: Tensor, count: int) -> tuple[Pairs, Tensor]:
    found, index = errors.topk(min(count, len(errors)), dim=0, largest=False)
    return (pairs[0].gather(0, index), pairs[1].gather(0, index)), found


def start_of(
    quantizer: Quantizer, groups: Tensor, own: Errors, progression: Progression, is_weight: bool
) -> Start:
    """Return the first candidates of a uniform or logarithmic quantizer.

    Args:
        quantizer: gives form and bits.
        groups: what it quantizes, or a sample, [G, N].
        own: errors by which a logarithmic grid's bases are chosen.
        progression: tells how many.
        is_weight: weights have fewer zero points.
    """
    if isinstance(quantizer, LogGridQuantizer):
        return _logarithmic(quantizer, groups, own, progression)
    assert isinstance(quantizer, UniformQuantizer)
    return _uniform(quantizer, groups, progression, is_weight)


def require_pair(quantizer: Quantizer) -> None:
    """Refuse a form of one number, or of others than a scale and a zero point, or a base.

    Raises:
        MethodError: the site and the form are named.
    """
    if not isinstance(quantizer, UniformQuantizer | LogGridQuantizer):
        raise MethodError(
            f"{quantizer.site}: a {type(quantizer).__name__} has no pair of numbers to combine; "
            "use a uniform form, or a logarithmic one with a base to choose"
        )


def _uniform(
    quantizer: UniformQuantizer, groups: Tensor, progression: Progression, is_weight: bool
) -> Start:
    """Spans between `NARROWEST` and the extreme values, each with zero points around its own."""
    bits, symmetric = quantizer.spec.bits, quantizer.spec.symmetric
    zeros = min(2 ** (bits - 1) if is_weight else 2**bits, progression.first // FEWEST_SPANS)
    zeros = 1 if symmetric else max(1, zeros)
    spans = max(2, progression.first // zeros)
    # Widened: a constant channel would get the smallest scale there is, and a fold would divide by it.
    low, high = widened(*percentile_ranges(groups, (NARROWEST, 1.0)))
    share = torch.linspace(0, 1, spans, device=groups.device)[:, None]
    low, high = torch.lerp(low[0], low[1], share), torch.lerp(high[0], high[1], share)
    if symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / (2 ** (bits - 1) - 0.5)
    else:
        scale = (high - low) / (2**bits - 1)
    scale = scale.clamp_min(TINY)
    offsets = torch.arange(zeros, device=groups.device) - zeros // 2
    zero = torch.zeros_like(scale) if symmetric else (-low / scale).round()
    shifted = zero[:, None] + offsets[:, None]
    pairs = scale[:, None].expand_as(shifted).flatten(0, 1), shifted.flatten(0, 1)
    return Start(pairs, (scale[-1] - scale[0]) / (spans - 1))


def _logarithmic(
    quantizer: LogGridQuantizer, groups: Tensor, own: Errors, progression: Progression
) -> Start:
    """The best `BASES` of some of AdaLog's at the largest value, each with scales from it downwards."""
    top = groups.amax(dim=1).add(quantizer.shift).clamp_min(TINY)
    tried = max(2, int(progression.first * BASES_TRIED))
    q = torch.linspace(SMALLEST_Q, LARGEST_Q, tried, device=groups.device).round()
    steps = (ROOTS / q)[:, None].expand(-1, len(top))
    pairs = top.expand_as(steps), steps
    (_, best), _ = _best(pairs, own(pairs), BASES)
    scales = progression.first // BASES
    share = torch.arange(1, scales + 1, device=groups.device)[:, None] / scales
    scale = (top * share)[:, None].expand(-1, len(best), -1)
    pairs = scale.flatten(0, 1), best.expand_as(scale).flatten(0, 1)
    return Start(pairs, top / scales)


def set_pair(quantizer: Quantizer, first: Tensor, second: Tensor) -> None:
    """Set scale and second number, both [G]."""
    if isinstance(quantizer, LogGridQuantizer):
        quantizer.set_levels(first, second)
    else:
        assert isinstance(quantizer, UniformQuantizer)
        quantizer.set_parameters(first, second)


def quantize_of(quantizer: Quantizer) -> Callable[[Tensor, Pairs], Tensor]:
    """Return a function that fake-quantizes a tensor with one candidate, as ``quantizer`` would with it."""
    axis = quantizer.axis
    if isinstance(quantizer, UniformQuantizer):
        code_range = quantizer.code_range
        return lambda x, pair: fake_quantize(
            x, spread(pair[0], x, axis), spread(pair[1], x, axis), code_range
        )
    probe = type(quantizer)(quantizer.spec, quantizer.site, axis)

    def quantize(x: Tensor, pair: Pairs) -> Tensor:
        set_pair(probe, *pair)
        return probe.fake_quantize(x)

    return quantize


def own_errors(quantizer: Quantizer, groups: Tensor) -> Errors:
    """Return the squared error of a tensor's entries [G, N] as a function of candidates.

    Behind GELU, entries from `COUNTED` up do not count.
    """
    if isinstance(quantizer, UniformQuantizer):
        code_range = quantizer.code_range
        return lambda pairs: uniform_errors(groups, *pairs, code_range)
    assert isinstance(quantizer, LogGridQuantizer)
    probe = type(quantizer)(quantizer.spec, quantizer.site, axis=0)
    counts = groups.lt(COUNTED - quantizer.shift).to(groups.dtype)

    def errors(pairs: Pairs) -> Tensor:
        found = []
        for pair in zip(*pairs, strict=True):
            probe.set_levels(*pair)
            error = probe.fake_quantize(groups).sub_(groups).square_().mul_(counts)
            found.append(error.sum(dim=1))
        return torch.stack(found)

    return errors


def search_own(quantizer: Quantizer, x: Tensor, progression: Progression, is_weight: bool) -> None:
    """Set the pair of numbers of least squared error of ``x`` per group, by `progressive`.

    Args:
        quantizer: uniform, or logarithmic with a base to choose.
        x: what it quantizes; of an activation `SAMPLED_IN_ALL` entries are looked at.
        progression: numbers of the search.
        is_weight: whether x is a weight.

    Raises:
        MethodError: another form.
    """
    require_pair(quantizer)
    groups = grouped(x, quantizer)
    if not is_weight:
        groups = sampled(groups, max(1, SAMPLED_IN_ALL // len(groups)))
    errors = own_errors(quantizer, groups)
    start = start_of(quantizer, groups, errors, progression, is_weight)
    set_pair(quantizer, *progressive(start, errors, progression))


def progressive_rule(progression: Progression | None = None) -> RangeRule:
    """Return the rule that is `search_own`, with AdaLog's numbers if none are given."""
    numbers = progression or Progression()

    def rule(site: Site, x: Tensor) -> None:
        search_own(site.quantizer, x, numbers, site.is_weight)

    return rule
