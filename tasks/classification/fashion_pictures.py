"""Pictures of clothes: a part of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), which comes with the package.

The file is made by ``python -m vit_ptq_bench.tasks.training.fashion_slices``; its licence lies beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vit_ptq_bench.tasks.classification.decoding import decoded
from vit_ptq_bench.tasks.storage.contents import read_content

SLICES = Path(__file__).parents[1] / "data" / "fashion_mnist.npz"

CLASSES = 10

SIZE = 28
"""Width and height of a picture."""

SLICE_SIZES = {"test": 2000, "training": 2000, "holdout": 1000}
"""Pictures of each slice, as many of every class: to judge on, to calibrate on, and of the training set those
that no bundled model was trained on."""


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 [n, 28, 28, 3] (RGB, all channels alike) and ``labels`` int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@cache
def fashion_slice(name: str) -> Pictures:
    """Return a slice, see `SLICE_SIZES`."""
    with np.load(SLICES, allow_pickle=False) as file:
        return Pictures(
            as_pictures(file[f"{name}_images"]), file[f"{name}_labels"].astype(np.int64)
        )


def as_pictures(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return Fashion-MNIST's images uint8 [n, 28, 28] as models take them: uint8 [n, 28, 28, 3]."""
    return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))


def read_pictures(paths: Sequence[Path], contents: Sequence[str]) -> NDArray[np.uint8]:
    """Return image files as pictures, uint8 [n, 28, 28, 3]: grey, the middle square, resized (bicubic).

    Args:
        paths: of the files.
        contents: SHA-256 of each.

    Raises:
        TaskError: one cannot be read, or holds other bytes.
    """
    grey = []
    for path, content in zip(paths, contents, strict=True):
        image = decoded(path, read_content(path, content)).convert("L")
        grey.append(np.asarray(ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)))
    return as_pictures(np.stack(grey))
