"""Data sets in VOC's or YOLO's layout, written in the layout that the task ``coco`` reads.

``OUT/train``, ``OUT/val`` get the images, ``OUT/annotations/train.json`` and ``val.json`` what is on them.
Boxes alone: neither layout has masks.
"""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, UnidentifiedImageError

from vit_ptq_bench.tasks.detection.data import IMAGE_SUFFIXES, images_in
from vit_ptq_bench.tasks.errors import TaskError

VOC_SPLITS = {"train": "trainval", "val": "test"}
"""Which list of ``ImageSets/Main`` becomes which part."""


@dataclass(frozen=True)
class Box:
    """An object: class name, and the box (x, y, width, height) in pixels."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An image file and the objects on it."""

    path: Path
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Part:
    """What was written of one part: numbers of images, objects, and boxes of no size that were left out."""

    name: str
    images: int
    objects: int
    dropped: int


def convert_voc(source: Path, out: Path) -> list[Part]:
    """Convert ``Annotations/*.xml``, ``JPEGImages`` and ``ImageSets/Main/{trainval,test}.txt``.

    Raises:
        TaskError: a file is missing or not in VOC's form; it is named.
    """
    parts: dict[str, list[Picture]] = {}
    for part, listing in VOC_SPLITS.items():
        path = source / "ImageSets" / "Main" / f"{listing}.txt"
        names = [line.split()[0] for line in _lines(path) if line.strip()]
        parts[part] = [_voc_picture(source, name) for name in names]
    return write_parts(parts, out)


def _voc_picture(source: Path, name: str) -> Picture:
    path = source / "Annotations" / f"{name}.xml"
    try:
        root = ElementTree.parse(path).getroot()
        boxes = []
        for entry in root.iter("object"):
            low, high = (
                [float(str(entry.findtext(f"bndbox/{axis}{end}"))) for axis in "xy"]
                for end in ("min", "max")
            )
            size = high[0] - low[0], high[1] - low[1]
            boxes.append(Box(str(entry.findtext("name")), (low[0], low[1], *size)))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise TaskError(f"{path}: not an annotation in VOC's form ({error})") from error
    return Picture(_image(source / "JPEGImages", name), tuple(boxes))


def convert_yolo(source: Path, out: Path) -> list[Part]:
    """Convert ``images/{train,val}``, ``labels/{train,val}``, names in ``data.yaml`` or ``classes.txt``.

    Raises:
        TaskError: a file is missing or not in YOLO's form; it is named.
    """
    names = _yolo_names(source)
    parts = {}
    for part in ("train", "val"):
        folder = source / "images" / part
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder of images")
        labels = source / "labels" / part
        parts[part] = [_yolo_picture(path, labels, names) for path in images_in(folder)]
    return write_parts(parts, out)


def _yolo_names(source: Path) -> list[str]:
    if (source / "classes.txt").is_file():
        return [line.strip() for line in _lines(source / "classes.txt") if line.strip()]
    path = source / "data.yaml"
    try:
        names = yaml.safe_load("\n".join(_lines(path)))["names"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise TaskError(f"{path}: holds no list of class names ('names')") from error
    return [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else list(names)


def _yolo_picture(image: Path, labels: Path, names: Sequence[str]) -> Picture:
    """A line is ``class x y width height``, centre and size as shares of the image; no file: no object."""
    path = labels / f"{image.stem}.txt"
    width, height = _size(image)
    boxes = []
    for number, line in enumerate(_lines(path) if path.is_file() else [], start=1):
        if not line.strip():
            continue
        try:
            name = names[int(line.split()[0])]
            x, y, w, h = (float(value) for value in line.split()[1:])
        except (ValueError, IndexError) as error:
            raise TaskError(f"{path}:{number}: not 'class x y width height' ({error})") from error
        boxes.append(Box(name, ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)))
    return Picture(image, tuple(boxes))


def write_parts(parts: dict[str, list[Picture]], out: Path) -> list[Part]:
    """Write images and annotations of all parts, with one list of categories."""
    everything = [
        box for pictures in parts.values() for picture in pictures for box in picture.boxes
    ]
    names = sorted({box.name for box in everything})
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    return [_write_part(name, pictures, names, out) for name, pictures in parts.items()]


def _write_part(name: str, pictures: Iterable[Picture], names: list[str], out: Path) -> Part:
    (out / name).mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    dropped = 0
    for picture in pictures:
        width, height = _size(picture.path)
        shutil.copyfile(picture.path, out / name / picture.path.name)
        image = len(images) + 1
        facts = {"id": image, "file_name": picture.path.name, "width": width, "height": height}
        images.append(facts)
        for box in picture.boxes:
            if min(box.box[2:]) <= 0:
                dropped += 1
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": names.index(box.name) + 1,
                    "bbox": list(box.box),
                    "area": box.box[2] * box.box[3],
                    "iscrowd": 0,
                }
            )
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": text} for i, text in enumerate(names, start=1)],
    }
    (out / "annotations" / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return Part(name, len(images), len(annotations), dropped)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error})") from error


def _image(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES]
    for path in found:
        if path.is_file():
            return path
    raise TaskError(f"{found[0]}: no such image")


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise TaskError(f"{path}: cannot be read as an image ({error})") from error
