"""Search of an activation's codebook: of a type's numbers those of least squared error, found exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    def of(cls, values: Tensor, weights: Tensor) -> WeightedEntries:
        """Return them for ``values`` in ascending order that count as their ``weights`` (> 0), float, [N]."""
        values, weights = values.double(), weights.double()
        counted = torch.stack([weights, weights * values, weights * values.square()])
        return cls(values, F.pad(counted.cumsum(dim=1), (1, 0)))

    def below(self, bounds: Tensor) -> Tensor:
        """Return the `moments` of what lies below ``bounds`` (float64), [3, *bounds.shape]."""
        return self.moments[:, places_of(self.values, bounds.contiguous())]


@dataclass(frozen=True)
class SortedEntries:
    """The entries of all groups over their groups' scales, in order, whatever they count for.

    Attributes:
        reach: the largest magnitude of each group, [G].
        values: float32 [N], ascending, on the CPU.
        sizes: of each value the square of its group's ``reach``: [N], or [1] where there is one group.
    """

    reach: Tensor
    values: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, groups: Tensor) -> SortedEntries:
        """Return them for ``groups`` (float, [G, N])."""
        reach = groups.abs().amax(dim=1).clamp_min(TINY)
        entries = (groups / reach[:, None]).flatten().cpu().float()
        sizes = reach.square().cpu().float()
        # numpy's sort of float32 takes a tenth of torch's of pairs.
        if len(reach) == 1:
            return cls(reach, torch.from_numpy(np.sort(entries.numpy())), sizes)
        order = torch.from_numpy(np.argsort(entries.numpy(), kind="stable"))
        return cls(reach, entries[order], sizes[order // groups.shape[1]])

    def counted(self, inverse_power: float) -> WeightedEntries:
        """Return them with an entry x counting ``|x|^-inverse_power``."""
        weights = self.sizes * self.values.abs().clamp_min(SMALL).pow(-inverse_power)
        return WeightedEntries.of(self.values, weights)


def search_codebook(
    quantizer: Codebook, groups: Tensor | SortedEntries, inverse_power: float = 0.0
) -> None:
    """Choose the levels of a tensor: each value on the nearest, least squared error of all choices.

    Every group has its scale, by its largest entry, and the table is for all.

    Args:
        quantizer: gives the candidates, on both sides of zero.
        groups: finite, [G, N]; sorted where more than one search looks at them.
        inverse_power: p, an entry x counts as ``|x|^-p``: p = 2 would make all errors relative ones.
    """
    entries = groups if isinstance(groups, SortedEntries) else SortedEntries.of(groups)
    candidates = quantizer.candidates(quantizer.spec.bits).double()
    scales = torch.tensor(quantizer.shares, dtype=torch.float64) / candidates.abs().max()
    found, errors = cheapest_levels(
        entries.counted(inverse_power), candidates, scales, quantizer.choices
    )
    best = int(errors.argmin())
    chosen = candidates[found[best]].to(entries.reach)
    quantizer.set_levels(chosen, float(scales[best]) * entries.reach)


def codebook_rule(site: Site, x: Tensor) -> None:
    """Search the codebook of an activation by its own squared error.

    Behind GELU too all entries count: a few huge ones cost a level or two, and clipping them costs more
    (ViT-Tiny has some beyond 20 in one block; a uniform grid can only choose what to lose).
    """
    assert isinstance(site.quantizer, Codebook)
    search_codebook(site.quantizer, sampled(grouped(x, site.quantizer), ENTRIES))
