"""From the bytes of pictures to the floats that a classifier takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_ptq_bench.tasks.classification.zoo import MEAN, STD


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Return pixels uint8 [n, 3, H, W] as float32, as torchvision does: to [0, 1], less ``mean``, by ``std``.

    Mean and deviation are one number, or one of each channel ([3, 1, 1]).
    """
    return pixels.float().div_(255).sub_(mean).div_(std)


def picture_images(pictures: NDArray[np.uint8]) -> Tensor:
    """Return pictures uint8 [n, H, W, 3] as bundled models take them: float32 [n, 3, H, W], -1 to 1."""
    return normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2), MEAN, STD)


def picture_batches(pictures: NDArray[np.uint8], size: int) -> list[Tensor]:
    """Return pictures as batches of at most ``size``, see `picture_images`."""
    return list(torch.split(picture_images(pictures), size))


def labelled_batches(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of at most ``size`` pictures, see `picture_images`, and their labels int64 [b]."""
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        yield picture_images(pictures[part]), torch.from_numpy(labels[part])
