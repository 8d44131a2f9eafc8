"""A folder of pictures named by their WordNet ids, cut into images to calibrate and images to judge."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from vit_ptq_bench.tasks.classification.image_listing import EXTENSIONS
from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices
from vit_ptq_bench.tasks.errors import TaskError

PARTS = ("train", "val")
"""Of the images of even and of odd rank."""

_NAME = re.compile(r"(n[0-9]{8})_.+")


def convert_halves(source: Path, out: Path) -> dict[str, int]:
    """Copy images in the layout that the task ``imagenet`` reads.

    That is ``OUT/train/<class>/`` and ``OUT/val/<class>/``. The images are ranked by name, from 0: those of
    even rank calibrate, those of odd rank are judged on. Of a collection with one image per class no class is
    then in both.

    Args:
        source: a folder with images called ``<WordNet id of ImageNet-1k>_<anything>``; what has no suffix of
            an image is left out.
        out: a folder that is not there yet.

    Returns:
        part -> number of images.

    Raises:
        TaskError: no such folder, fewer than two images, a name without such an id, or ``out`` is there;
            nothing is written then.
    """
    images = _images(source)
    if out.exists():
        raise TaskError(f"{out} is there already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Half a copy would look like a whole data set: it gets its name when it is done.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        for rank, (image, name) in enumerate(images):
            folder = Path(made, "whole", PARTS[rank % 2], name)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, folder / image.name)
        os.rename(Path(made, "whole"), out)
    return {"train": (len(images) + 1) // 2, "val": len(images) // 2}


def _images(source: Path) -> list[tuple[Path, str]]:
    """The images with their WordNet ids, by name."""
    if not source.is_dir():
        raise TaskError(f"{source}: no such folder")
    paths = sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    if len(paths) < 2:
        raise TaskError(f"{source}: {len(paths)} images; there must be two at least")
    return [(path, _class_of(path)) for path in paths]


def _class_of(path: Path) -> str:
    found = _NAME.fullmatch(path.stem)
    if found is None or found[1] not in imagenet_indices():
        raise TaskError(
            f"{path}: the name must begin with a WordNet id of ImageNet-1k, like n01440764_tench.JPEG"
        )
    return found[1]
