"""Search of an activation's codebook: of a type's numbers those of least squared error, found exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.level_search import cheapest_levels
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.calibration.range_search import places_of, sampled
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.codebook import Codebook

SMALL = 1e-4
"""Least magnitude, as a share of the largest entry, that makes a weight."""

ENTRIES = 200_000
"""Entries of a group that a codebook is chosen for."""


@dataclass(frozen=True)
class WeightedEntries:
    """Entries in order, with running sums: what `level_search.Histogram` has, without bins.

    Attributes:
        values: float64 [N], ascending.
        moments: weight, sum and sum of squares of the first 0 to N, float64 [3, N + 1].
    """

    values: Tensor
    moments: Tensor

    @classmethod
    def of(cls, entries: Tensor, weights: Tensor) -> WeightedEntries:
        """Return them for ``entries`` (float, [N]) that count as their ``weights`` (> 0, [N])."""
        values, order = entries.double().cpu().sort()
        weights = weights.double().cpu()[order]
        counted = torch.stack([weights, weights * values, weights * values.square()])
        return cls(values, F.pad(counted.cumsum(dim=1), (1, 0)))

    def below(self, bounds: Tensor) -> Tensor:
        """Return the `moments` of what lies below ``bounds`` (float64), [3, *bounds.shape]."""
        return self.moments[:, places_of(self.values, bounds.contiguous())]


def search_codebook(quantizer: Codebook, groups: Tensor, inverse_power: float = 0.0) -> None:
    """Choose the levels of a tensor: each value on the nearest, least squared error of all choices.

    Every group has its scale, by its largest entry, and the table is for all.

    Args:
        quantizer: gives the candidates, on both sides of zero.
        groups: finite, [G, N].
        inverse_power: p, an entry x counts as ``|x|^-p``: p = 2 would make all errors relative ones.
    """
    candidates = quantizer.candidates(quantizer.spec.bits).double()
    reach = groups.abs().amax(dim=1).clamp_min(TINY)
    entries = (groups / reach[:, None]).flatten()
    size = reach.square()[:, None].expand_as(groups).flatten()
    known = WeightedEntries.of(entries, size * entries.abs().clamp_min(SMALL).pow(-inverse_power))
    scales = torch.tensor(quantizer.shares, dtype=torch.float64) / candidates.abs().max()
    found, errors = cheapest_levels(known, scales[:, None] * candidates, quantizer.choices)
    best = int(errors.argmin())
    chosen = candidates[found[best]].to(groups)
    quantizer.set_levels(chosen, float(scales[best]) * reach)


def codebook_rule(site: Site, x: Tensor) -> None:
    """Search the codebook of an activation by its own squared error.

    Behind GELU too all entries count: a few huge ones cost a level or two, and clipping them costs more
    (ViT-Tiny has some beyond 20 in one block; a uniform grid can only choose what to lose).
    """
    assert isinstance(site.quantizer, Codebook)
    search_codebook(site.quantizer, sampled(grouped(x, site.quantizer), ENTRIES))
