"""A range rule that finds groups of channels or tokens with similar ranges."""

from collections.abc import Callable

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.instance_groups import (
    InstanceGroupQuantizer,
    nearest,
)

Ends = tuple[Tensor, Tensor]
"""Smallest and largest values, [groups] each."""

ROUNDS = 10
"""Of assigning ranges to groups and moving the groups to their means."""

REACHES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far a group's range is tried to go from the mean of its members' ranges to the widest of them."""

IMAGES = 8
"""Instances on which the reach is chosen."""


def group_rule(groups: int, other: RangeRule) -> RangeRule:
    """Return a rule for `InstanceGroupQuantizer`: so many groups by k-means over the ranges of all instances.

    The groups start at even quantiles of the ranges' widths. Each group's range then goes from the means of
    its members' ends as far towards the widest as the squared error on a few instances asks for.

    Args:
        groups: most groups of a tensor.
        other: the rule of all other quantizers.
    """

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        if not isinstance(quantizer, InstanceGroupQuantizer):
            other(site, x)
            return
        low, high = (end.flatten() for end in quantizer.ranges(x))
        mean, widest = _clustered(low, high, groups)
        some, errors = x[:IMAGES], []
        for reach in REACHES:
            quantizer.set_groups(mean, _between(mean, widest, reach))
            errors.append(float((quantizer.fake_quantize(some) - some).square().sum()))
        best = REACHES[errors.index(min(errors))]
        quantizer.set_groups(mean, _between(mean, widest, best))

    return rule


def _between(first: Ends, second: Ends, share: float) -> Ends:
    return torch.lerp(first[0], second[0], share), torch.lerp(first[1], second[1], share)


def _clustered(low: Tensor, high: Tensor, groups: int) -> tuple[Ends, Ends]:
    """Mean and widest ends of groups of ranges [n]; groups that nothing belongs to are left out."""
    order = (high - low).argsort(stable=True)
    shares = (torch.arange(groups, device=low.device) + 0.5) / groups
    start = order[(shares * len(low)).long()]
    mean = low[start], high[start]
    for _ in range(ROUNDS):
        member = nearest(low, high, *mean)
        present = torch.bincount(member).nonzero().flatten()
        mean = _of_members(low, high, member, present, torch.mean, torch.mean)
    member = nearest(low, high, *mean)
    present = torch.bincount(member).nonzero().flatten()
    mean = mean[0][present], mean[1][present]
    return mean, _of_members(low, high, member, present, torch.amin, torch.amax)


def _of_members(
    low: Tensor,
    high: Tensor,
    member: Tensor,
    present: Tensor,
    of_low: Callable[[Tensor], Tensor],
    of_high: Callable[[Tensor], Tensor],
) -> Ends:
    """One value of each end for every group that has members."""
    inside = [member == group for group in present]
    return (
        torch.stack([of_low(low[chosen]) for chosen in inside]),
        torch.stack([of_high(high[chosen]) for chosen in inside]),
    )
