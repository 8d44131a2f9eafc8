"""Range rules that ask several parts of the calibration data and join their answers.

Both wrap what a rule finds for a whole tensor, so that they stand wherever a `RangeRule` does.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import (
    best_percentile_rule,
    histogram_shrink_rule,
)
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

logger = logging.getLogger(__name__)

STEPS = 100
"""Iterations of Weiszfeld's algorithm at most."""


class StableRule:
    """Sets ranges that one unusual image cannot decide: the pooled range, shrunk to the folds' common one.

    The images of an activation are cut into folds, in order. ``pooled``, given one fold after the other,
    finds ranges ``r_k = (low, high)`` per group, and on all images ``r``. With ``m`` the geometric median of
    the ``r_k`` and ``v`` the median of their squared distances from it the range is ``m + w (r - m)``,
    ``w = v / (v + |r - m|^2)``: a pooled range within what folds differ by is kept, one far beyond it is the
    work of few images and gives way to the median. Weights, of which there is one draw alone, get the
    pooled range, and so does what has one image, or a quantizer of another form than uniform.

    Source: the title of "Stabilized activation scale estimation for precise post-training quantization",
    Neurocomputing 2023; the estimator is this project's.

    Attributes:
        folds: K; fewer where there are fewer images.
        pooled: finds the range of a tensor; None: `histogram_shrink_rule`.
        spreads: site -> the largest ``sqrt(v) / (high - low)`` of its groups, of what has been calibrated.
    """

    def __init__(self, folds: int = 8, pooled: RangeRule | None = None) -> None:
        self.folds = folds
        self.pooled = pooled or histogram_shrink_rule()
        self.spreads: dict[str, float] = {}

    def __call__(self, site: Site, x: Tensor) -> None:
        """Set the range of one site from ``x``, first dimension images (or windows of images)."""
        quantizer, count = site.quantizer, min(self.folds, len(x))
        self.pooled(site, x)
        if site.is_weight or count < 2 or not isinstance(quantizer, UniformQuantizer):
            return
        whole = grid_ends(quantizer)
        ends = torch.stack(
            [_found(site, part, self.pooled) for part in torch.tensor_split(x, count)]
        )
        median = geometric_median(ends)
        variance = (ends - median).square().sum(dim=2).median(dim=0).values
        away = (whole - median).square().sum(dim=1)
        # Where all folds agree with the whole, both are 0 and any weight will do.
        weight = variance / (variance + away).clamp_min(torch.finfo(variance.dtype).tiny)
        _set_ends(quantizer, median + weight[:, None] * (whole - median))
        widths = (whole[:, 1] - whole[:, 0]).abs()
        self.spreads[site.name] = float((variance.sqrt() / widths).max())
        logger.info("%s: ranges of folds spread by %.3f", site.name, self.spreads[site.name])


def grid_ends(quantizer: UniformQuantizer) -> Tensor:
    """Return the values of the lowest and the highest code, [groups, 2]."""
    zero = quantizer.zero_point
    return torch.stack([quantizer.scale * (code - zero) for code in quantizer.code_range], dim=1)


def _set_ends(quantizer: UniformQuantizer, ends: Tensor) -> None:
    """Inverse of `grid_ends`, the zero point rounded."""
    lowest, highest = quantizer.code_range
    scale = (ends[:, 1] - ends[:, 0]) / (highest - lowest)
    quantizer.set_parameters(scale, torch.round(lowest - ends[:, 0] / scale))


def _found(site: Site, x: Tensor, rule: RangeRule) -> Tensor:
    """Ends of the grid that a rule finds for a part of the data; the site's own quantizer stays as it is."""
    quantizer = site.quantizer
    probe = type(quantizer)(quantizer.spec, quantizer.site, quantizer.axis)
    rule(replace(site, quantizer=probe), x)
    assert isinstance(probe, UniformQuantizer)
    return grid_ends(probe)


def geometric_median(points: Tensor) -> Tensor:
    """Return the points of least summed distance from others (Weiszfeld's algorithm).

    Args:
        points: [K, G, D].

    Returns:
        [G, D]; a point that is the answer itself may be met from a distance of 1e-6 of the spread.
    """
    median = points.median(dim=0).values
    # At a point itself the weight would be infinite; where all points are one, the spread is 0 too.
    least = (1e-6 * (points - median).norm(dim=2).amax(dim=0)).clamp_min(TINY)
    for _ in range(STEPS):
        distance = (points - median).norm(dim=2)
        weights = 1 / torch.maximum(distance, least)
        median = (points * weights[..., None]).sum(dim=0) / weights.sum(dim=0)[:, None]
    return median


def percentile_grid(candidates: int = 9, least: float = 0.99, finest: float = 1e-6) -> list[float]:
    """Return percentiles whose tails are evenly spaced by ratio, and 1: no tail at all.

    Args:
        candidates: how many, 2 or more.
        least: the smallest, below 1.
        finest: the smallest tail but none.
    """
    tails = torch.logspace(0, 1, candidates - 1, base=finest / (1 - least), dtype=torch.float64)
    return [*(1 - tails * (1 - least)).tolist(), 1.0]


def chunked_percentile_rule(chunks: int = 4, fractions: Sequence[float] | None = None) -> RangeRule:
    """Return a rule that chooses a percentile by squared error in each chunk of tokens, and joins the ranges.

    The tokens of an activation (rows of an image; images, where there are no tokens) are cut into chunks.
    Each takes the percentile of least squared error on its own entries, for each group, and the range is
    the mean of the chunks' ranges. Weights and forms other than uniform are one chunk.

    Source: the title of "Post-training quantization for Longformer with chunkwise quantization granularity
    and optimized percentile", 2022. There every chunk keeps a scale of its own.

    Args:
        chunks: how many; fewer where there are fewer tokens.
        fractions: the percentiles, each in (0.5, 1]; None: `percentile_grid`.
    """
    best = best_percentile_rule(percentile_grid() if fractions is None else fractions)

    def rule(site: Site, x: Tensor) -> None:
        count = min(chunks, x.shape[-2])
        if site.is_weight or count < 2 or not isinstance(site.quantizer, UniformQuantizer):
            best(site, x)
            return
        parts = torch.tensor_split(x, count, dim=-2)
        _set_ends(site.quantizer, torch.stack([_found(site, part, best) for part in parts]).mean(0))

    return rule
