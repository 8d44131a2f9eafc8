"""Images and annotations in COCO's form, checked before anything else looks at them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks.errors import TaskError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class CocoFiles:
    """One set of images with their annotations in COCO's form.

    Attributes:
        annotations: the JSON file.
        images: the folder of the images.
        classes: names of the categories, in the order of their ids.
        has_masks: whether every object has a segmentation.
        image_ids: ids of all images, ascending.
    """

    annotations: Path
    images: Path
    classes: tuple[str, ...]
    has_masks: bool
    image_ids: tuple[int, ...]


def read_coco(annotations: Path, images: Path) -> CocoFiles:
    """Check an annotation file and return what is in it.

    Raises:
        TaskError: the file or the folder is missing, the JSON is truncated, has no images or categories, an
            object belongs to an unknown category or image, or a box is none; the first few are named.
    """
    if not annotations.is_file():
        raise TaskError(f"{annotations}: no such annotation file")
    if not images.is_dir():
        raise TaskError(f"{images}: no such folder of images")
    data = _json(annotations)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise TaskError(f"{annotations}: the list {key!r} of COCO's form is missing")
    if not data["images"] or not data["categories"]:
        raise TaskError(f"{annotations}: there are no images, or no categories")
    try:
        _check(annotations, data)
        categories = sorted(data["categories"], key=lambda category: category["id"])
        return CocoFiles(
            annotations,
            images,
            tuple(category["name"] for category in categories),
            all(entry.get("segmentation") for entry in data["annotations"]),
            tuple(sorted(image["id"] for image in data["images"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise TaskError(f"{annotations}: not in COCO's form ({error!r} is missing)") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TaskError(f"{path}: not readable as JSON ({error}); it may be truncated") from error
    if not isinstance(data, dict):
        raise TaskError(f"{path}: holds no object of COCO's form")
    return data


def _check(path: Path, data: dict[str, Any]) -> None:
    images = {image["id"] for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    problems: dict[str, list[int]] = {}
    for entry in data["annotations"]:
        box = entry["bbox"]
        if entry["category_id"] not in categories:
            problems.setdefault("have an unknown category_id", []).append(entry["id"])
        elif entry["image_id"] not in images:
            problems.setdefault("have an unknown image_id", []).append(entry["id"])
        elif len(box) != 4 or min(box[2:]) < 0:
            problems.setdefault("have no box (x, y, width, height)", []).append(entry["id"])
    if problems:
        texts = [f"{len(ids)} annotations {what}: {ids[:3]}" for what, ids in problems.items()]
        raise TaskError(f"{path}: {'; '.join(texts)}")


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
