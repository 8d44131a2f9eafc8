"""Views of calibration images: random resized crops and flips, the same for one seed."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_AREA = 0.5
"""Smallest share of an image's area that a crop shows; the largest is all of it."""

LEAST_ASPECT = 3 / 4
"""Narrowest crop, width to height, drawn evenly on a log scale up to its inverse."""


def with_views(images: Tensor, crops: int, seed: int) -> Tensor:
    """Return the images, then ``crops`` random views of each: all first views, all second views, ...

    A view is a random part of the image (`LEAST_AREA`, `LEAST_ASPECT`) at the image's own size, bicubic, and
    mirrored in half of the cases. The full-precision model is asked anew what it says of a view.

    Args:
        images: [n, C, H, W], preprocessed.
        crops: views per image.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    views = [images]
    for _ in range(crops):
        views.append(torch.cat([_view(image[None], generator) for image in images]))
    return torch.cat(views)


def _view(image: Tensor, generator: torch.Generator) -> Tensor:
    """One view of one image [1, C, H, W]."""
    area, aspect, down, right, mirror = torch.rand(5, generator=generator).tolist()
    height, width = image.shape[-2:]
    share = LEAST_AREA + (1 - LEAST_AREA) * area
    ratio = math.exp((2 * aspect - 1) * math.log(1 / LEAST_ASPECT))
    rows = max(1, min(height, round(height * math.sqrt(share / ratio))))
    columns = max(1, min(width, round(width * math.sqrt(share * ratio))))
    top, left = round((height - rows) * down), round((width - columns) * right)
    part = image[..., top : top + rows, left : left + columns]
    view = F.interpolate(part, (height, width), mode="bicubic", antialias=True)
    return view.flip(-1) if mirror < 0.5 else view
