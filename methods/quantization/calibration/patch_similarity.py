"""Similarity of patches in attention outputs, and the differential entropy of its distribution.

Source: PSAQ-ViT (Li et al., ECCV 2022), from its description: noise makes all patches alike to a vision
transformer, real images do not, and the entropy of the patches' cosine similarities tells the two apart.
"""

import math

import torch
from torch import Tensor

REACH = 4
"""Bandwidths beyond the interval [-1, 1] at which the density is still looked at."""

FINENESS = 4
"""Points of the grid per bandwidth."""

LEAST_DENSITY = 1e-12
"""Where the density is less its logarithm is cut off, so that 0 log 0 and its gradient are 0."""


def patch_similarities(outputs: Tensor, images: int) -> Tensor:
    """Return the cosine similarities of all pairs of different patches, float32 [images, pairs].

    Patches of one image that lie in different windows make no pair: their attention never met.

    Args:
        outputs: of one attention, [images * windows, N, C]; a window is a whole image where there are none.
        images: how many.
    """
    unit = torch.nn.functional.normalize(outputs.float(), dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    tokens = similarity.shape[-1]
    # Without its last entry the flat matrix falls into rows that each begin on the diagonal.
    rows = similarity.flatten(1)[:, :-1].reshape(-1, tokens - 1, tokens + 1)
    return rows[:, :, 1:].reshape(images, -1)


def differential_entropy(values: Tensor, bandwidth: float) -> Tensor:
    """Return H = -integral of f log f in nats, [G]; f is the Gaussian kernel density of each row of values.

    The samples are first shared out linearly between the two nearest points of a grid, a quarter of a
    bandwidth apart (binned kernel density), so that the cost grows with their number and not with pairs of
    samples and points. Differentiable with respect to ``values``.

    Args:
        values: [G, n] in [-1, 1].
        bandwidth: deviation of the kernel, in the unit of ``values``.
    """
    step = bandwidth / FINENESS
    start = -1 - REACH * bandwidth
    points = math.ceil(-2 * start / step) + 1
    shares = _shared_out((values - start) / step, points) / values.shape[1]
    density = (shares @ _kernel(points, step, bandwidth, values)).clamp_min(LEAST_DENSITY)
    return -(density * density.log()).sum(dim=1) * step


def _shared_out(place: Tensor, points: int) -> Tensor:
    """How much of the samples falls to each point, [G, points]; ``place`` [G, n] in units of the grid."""
    left = place.detach().floor().clamp(0, points - 2)
    right_share = (place - left).flatten()
    rows = torch.arange(len(place), device=place.device)[:, None] * points
    index = (rows + left.long()).flatten()
    counts = place.new_zeros(len(place) * points)
    counts = counts.scatter_add(0, index, 1 - right_share)
    return counts.scatter_add(0, index + 1, right_share).view(-1, points)


def _kernel(points: int, step: float, bandwidth: float, like: Tensor) -> Tensor:
    """The Gaussian between each two points of the grid, [points, points]."""
    grid = torch.arange(points, dtype=like.dtype, device=like.device) * (step / bandwidth)
    distance = grid[:, None] - grid[None, :]
    return torch.exp(-0.5 * distance.square()) / (bandwidth * math.sqrt(2 * math.pi))
