"""A range rule that finds groups of channels or tokens with similar ranges."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.instance_groups import (
    InstanceGroupQuantizer,
    nearest,
)

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
            quantizer.set_groups(
                *(torch.lerp(a, b, reach) for a, b in zip(mean, widest, strict=True))
            )
            errors.append(float((quantizer.fake_quantize(some) - some).square().sum()))
        best = REACHES[errors.index(min(errors))]
        quantizer.set_groups(*(torch.lerp(a, b, best) for a, b in zip(mean, widest, strict=True)))

    return rule


def _clustered(low: Tensor, high: Tensor, groups: int) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and widest ends of groups of ranges [n]; groups that nothing belongs to are left out."""
    order = (high - low).argsort(stable=True)
    shares = (torch.arange(groups, device=low.device) + 0.5) / groups
    start = order[(shares * len(low)).long()]
    ends = [low[start], high[start]]
    for _ in range(ROUNDS):
        member = nearest(low, high, *ends)
        present = torch.bincount(member).nonzero().flatten()
        ends = [torch.stack([end[member == g].mean() for g in present]) for end in (low, high)]
    member = nearest(low, high, *ends)
    present = torch.bincount(member).nonzero().flatten()
    ends = [end[present] for end in ends]
    bottom = torch.stack([low[member == g].amin() for g in present])
    return ends, [bottom, torch.stack([high[member == g].amax() for g in present])]
