"""Images and labels of torchvision's data sets, read from disk; nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.tasks.classification.torchvision_sets.names import DESCRIPTIONS
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import Stored

OPEN = 2
"""Data sets that are held open: the split to calibrate and the one to judge on."""

CHANNELS = (1, 3)


@dataclass(frozen=True)
class Part:
    """One split of a data set.

    Attributes:
        images: in the order of the data set.
        labels: of each, from 0.
        classes: names of the classes in the order of the labels; None: torchvision does not tell.
    """

    images: Sequence[Stored]
    labels: list[int]
    classes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, order=True)
class ArrayImage:
    """An image in the array of pixels that a data set of small images is.

    Attributes:
        name: torchvision's, of the data set.
        root: folder of torchvision's data sets.
        training: whether it is of the split that calibration draws from.
        number: of the image in its split, from 0.
    """

    name: str
    root: Path
    training: bool
    number: int

    @property
    def file(self) -> Path:
        """The file that the array is read from, of several the first."""
        return _stored(self.name, self.root, self.training)

    def read(self) -> bytes:
        """Return the pixels as an image file of the form PPM, or PGM for grey ones.

        No pixel is lost, and unlike those of a compressed form the bytes are the same by every version of a
        library.

        Raises:
            TaskError: the data set cannot be read, or holds no such pixels.
        """
        pixels = _pixels(_open(self.name, self.root, self.training), self)
        height, width, channels = pixels.shape
        magic = "P5" if channels == 1 else "P6"
        return f"{magic}\n{width} {height}\n255\n".encode() + pixels.tobytes()

    def __str__(self) -> str:
        return f"{self.file}, image {self.number}"


def read_part(name: str, root: Path, training: bool) -> Part:
    """Return a split of a data set on disk.

    Args:
        name: torchvision's, one of `DESCRIPTIONS`.
        root: folder that torchvision calls ``root``, which holds the folder of the data set.
        training: whether to read the split that calibration draws from.

    Raises:
        TaskError: it is not there, damaged, or holds no image.
    """
    opened, description = _open(name, root, training), DESCRIPTIONS[name]
    images = getattr(opened, description.images)
    if description.labels is None:
        paths, labels = [path for path, _ in images], [label for _, label in images]
    else:
        paths, labels = images, getattr(opened, description.labels)
    if not len(paths):
        raise TaskError(f"{root}: {name} holds no image of its {_split(name, training)}")
    if len(paths) != len(labels):
        raise TaskError(
            f"{root}: {name} has {len(paths)} images and {len(labels)} labels; fetch it again"
        )
    stored: Sequence[Stored] = (
        [Path(path) for path in paths]
        if description.stored is None
        else [ArrayImage(name, root, training, i) for i in range(len(paths))]
    )
    classes = getattr(opened, description.classes, None)
    return Part(stored, [int(label) for label in labels], tuple(classes) if classes else None)


def _stored(name: str, root: Path, training: bool) -> Path:
    """The file that an array is read from; of a data set of image files the root."""
    stored = DESCRIPTIONS[name].stored
    return root / stored[0 if training else 1].format(name) if stored else root


def _open(name: str, root: Path, training: bool) -> Any:
    """The data set as torchvision reads it; anew where its file was written since.

    Raises:
        TaskError: it cannot be read.
    """
    path = _stored(name, root, training)
    written = path.stat().st_mtime_ns if path.exists() else None
    return _opened(name, root, training, written)


@lru_cache(maxsize=OPEN)
def _opened(name: str, root: Path, training: bool, written: int | None) -> Any:
    """The data set as torchvision reads it, of which only the time of its file tells the state.

    Raises:
        TaskError: it cannot be read.
    """
    from torchvision import datasets

    description = DESCRIPTIONS[name]
    arguments = dict(description.training if training else description.judged)
    try:
        return getattr(datasets, name)(root, download=False, **arguments)
    except Exception as error:  # each of its readers raises its own kinds on damaged files
        raise TaskError(
            f"{root}: torchvision finds no whole {name} there, {_split(name, training)} "
            f"({' '.join(str(error).split()) or type(error).__name__}); --data-dir is what torchvision calls "
            f"root, the folder in which the folder of the data set lies. To fetch it: python -c 'from "
            f'torchvision.datasets import {name}; {name}("{root}", download=True'
            + "".join(f", {key}={_quoted(value)}" for key, value in arguments.items())
            + ")'"
        ) from error


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _split(name: str, training: bool) -> str:
    description = DESCRIPTIONS[name]
    [value] = (description.training if training else description.judged).values()
    flags = {True: "training images", False: "test images"}
    return flags[value] if isinstance(value, bool) else f"split {value}"


def _pixels(opened: Any, image: ArrayImage) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] of one image."""
    array = getattr(opened, DESCRIPTIONS[image.name].images)
    if image.number >= len(array):
        raise TaskError(f"{image}: is gone; give the same command again")
    pixels = np.asarray(array[image.number])
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[0] in CHANNELS and pixels.shape[2] not in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype != np.uint8 or pixels.shape[2] not in CHANNELS:
        raise TaskError(f"{image}: is no image of bytes ({pixels.dtype}, {list(pixels.shape)})")
    return np.ascontiguousarray(pixels)
