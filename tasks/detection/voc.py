"""Data sets in VOC's layout: boxes in one XML file per image."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from vit_ptq_bench.tasks.detection.convert import (
    Labelled,
    Marked,
    Part,
    lines_of,
    size_of,
    write_parts,
)
from vit_ptq_bench.tasks.detection.pictures import SUFFIXES
from vit_ptq_bench.tasks.errors import TaskError

SPLITS = (("trainval", "test"), ("train", "test"), ("train", "val"))
"""Lists of ``ImageSets/Main`` that become ``train`` and ``val``: the first pair that is there."""

MEMBERSHIP = ("-1", "0", "1")
"""Second word of a line in lists of one class: whether it is on the image."""

SLACK = 1.0
"""Pixels that a box may reach out of its image: VOC counts from 1."""


@dataclass(frozen=True)
class _Box:
    name: str
    box: tuple[float, float, float, float]


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds a tree of XML without a document type: its entities can grow without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse it where it begins, before any entity is defined."""
        raise ValueError("a document type (<!DOCTYPE), which annotations do not have")


def convert_voc(source: Path, out: Path) -> list[Part]:
    """Convert ``Annotations/*.xml``, ``JPEGImages`` and the lists of ``ImageSets/Main``.

    Classes are sorted by name, for VOC has no list of them.

    Raises:
        TaskError: a file is missing or not in VOC's form; it is named.
    """
    lists = source / "ImageSets" / "Main"
    there = [pair for pair in SPLITS if all((lists / f"{name}.txt").is_file() for name in pair)]
    if not there:
        raise TaskError(
            f"{lists}: has neither trainval.txt and test.txt nor train.txt and val.txt, the lists of images"
        )
    read = {
        part: [_read(source, name) for name in _names(source, lists / f"{listing}.txt")]
        for part, listing in zip(("train", "val"), there[0], strict=True)
    }
    classes = sorted({box.name for images in read.values() for _, boxes in images for box in boxes})
    order = {name: index for index, name in enumerate(classes)}
    parts = {
        part: [
            Labelled(path, *size_of(path), tuple(Marked(order[b.name], b.box) for b in boxes))
            for path, boxes in images
        ]
        for part, images in read.items()
    }
    return write_parts(parts, classes, out)


def _names(source: Path, listing: Path) -> list[str]:
    """Names of a list: the whole line, without the word that says whether a class is on the image."""
    names = []
    for line in lines_of(listing):
        name = line.strip()
        words = name.rsplit(None, 1)
        if len(words) == 2 and words[1] in MEMBERSHIP and not _annotation(source, name).is_file():
            name = words[0]
        if name:
            names.append(name)
    if not names:
        raise TaskError(f"{listing}: names no image")
    return names


def _annotation(source: Path, name: str) -> Path:
    return source / "Annotations" / f"{name}.xml"


def _read(source: Path, name: str) -> tuple[Path, list[_Box]]:
    path = _annotation(source, name)
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
        image = _image(source / "JPEGImages", name)
        width, height = size_of(image)
        _check_size(root, width, height)
        boxes = [_box(entry, width, height) for entry in root.iter("object")]
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise TaskError(f"{path}: not an annotation in VOC's form ({error})") from error
    return image, boxes


def _check_size(root: ElementTree.Element, width: int, height: int) -> None:
    """A size of 0, or none, says nothing."""
    said = [_number(root.findtext(f"size/{name}") or "0") for name in ("width", "height")]
    if all(said) and said != [width, height]:
        raise ValueError(
            f"it is of an image of {said[0]:g} x {said[1]:g} pixels, and the image has {width} x {height}"
        )


def _box(entry: ElementTree.Element, width: int, height: int) -> _Box:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object without a name")
    left, top, right, bottom = (
        _number(entry.findtext(f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")
    )
    if right < left or bottom < top:
        raise ValueError(f"a box of {name!a} that ends before it begins")
    if min(left, top) < -SLACK or right > width + SLACK or bottom > height + SLACK:
        raise ValueError(f"a box of {name!a} that reaches out of its image")
    return _Box(name, (left, top, right - left, bottom - top))


def _number(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{text!a} is no number of pixels") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!a} is no number of pixels")
    return value


def _image(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))]
    for path in found:
        if path.is_file():
            return path
    raise TaskError(f"{found[0]}: no such image")
