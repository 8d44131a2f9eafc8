"""Mutated annotations in other layouts: VOC's XML, YOLO's texts and YAML.

Converted boxes have to be those of a reading by the format's rules alone.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

import yaml
from PIL import Image

from tests.faults.annotations import (
    CLASSES,
    SIZES,
    image_name,
    truth,
    write_images,
)
from tests.faults.command import bench
from tests.faults.mutations import mutate_file
from tests.faults.trials import Kind, Outcome, faulty

Boxes = Counter[tuple[str, str, tuple[float, ...]]]
"""Image, class and box (x, y, width, height), rounded, of every object, as often as it is there."""


@dataclass(frozen=True)
class Source:
    """A data set in another layout.

    Attributes:
        kind: of `bench convert`.
        folder: where it lies.
        files: those to mutate.
        texts: their content.
        read: reads it by the format's rules alone; None where it breaks them.
    """

    kind: str
    folder: Path
    files: list[Path]
    texts: dict[Path, str]
    read: Callable[[Path], Boxes | None]


def trial_converted(source: Source, number: int, rng: random.Random) -> Outcome:
    """Mutate one file, convert, and hold the boxes against the source's."""
    path = rng.choice(source.files)
    content, what = mutate_file(source.texts[path], rng)
    fault = f"{path.relative_to(source.folder)}: {what}"
    path.write_bytes(content)
    try:
        with faulty(fault):
            return judge_converted(source, fault)
    finally:
        path.write_text(source.texts[path])


def judge_converted(source: Source, fault: str) -> Outcome:
    """Convert and compare."""
    out = source.folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    said = bench(["convert", source.kind, str(source.folder), str(out)])
    if said.status:
        verdict = "refused" if said.error.strip() else "traceback"
        return Outcome(verdict, f"{fault}: {said.error}")
    expected, found = source.read(source.folder), converted(out)
    dropped = sum(map(int, re.findall(r"(\d+) [a-z ]+ left out", said.out)))
    if expected is None:
        return Outcome("silent", f"{fault}: breaks the format's rules, and is converted")
    if found == expected:
        return Outcome("right", fault)
    lacking, invented = expected - found, found - expected
    if dropped and lacking.total() <= dropped and not invented:
        return Outcome("refused", f"{fault}: {dropped} left out, and said")
    return Outcome("silent", f"{fault}: lacks {list(lacking)[:3]}, has {list(invented)[:3]}")


def converted(out: Path) -> Boxes:
    """What stands in the written files."""
    found: Boxes = Counter()
    for part in ("train", "val"):
        data = json.loads((out / "annotations" / f"{part}.json").read_text())
        names = {category["id"]: category["name"] for category in data["categories"]}
        files = {image["id"]: image["file_name"] for image in data["images"]}
        for entry in data["annotations"]:
            place = f"{part}/{files[entry['image_id']]}"
            found[place, names[entry["category_id"]], rounded(entry["bbox"])] += 1
    return found


def rounded(box: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) + 0.0 for value in box)


PARTS = {"train": (2, 3), "val": (0, 1)}
"""Which images are in which part."""

VOC_LISTS = {"train": "trainval", "val": "test"}


def prepare_voc(folder: Path) -> Source:
    """The truth in VOC's form."""
    root = folder / "voc"
    write_images(root / "JPEGImages")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part, indices in PARTS.items():
        names = [Path(image_name(index)).stem for index in indices]
        (lists / f"{VOC_LISTS[part]}.txt").write_text("\n".join(names) + "\n")
    (root / "Annotations").mkdir()
    for index in range(len(SIZES)):
        path = root / "Annotations" / f"{Path(image_name(index)).stem}.xml"
        path.write_text(_voc_text(index))
    files = [*sorted(root.glob("Annotations/*.xml")), *sorted(lists.glob("*.txt"))]
    return checked(Source("voc", root, files, {p: p.read_text() for p in files}, read_voc))


def checked(source: Source) -> Source:
    """The source, once it is known that it converts as it is."""
    outcome = judge_converted(source, "nothing")
    assert outcome.verdict == "right", outcome.text
    return source


def _voc_text(index: int) -> str:
    width, height = SIZES[index]
    objects = [
        f"  <object>\n    <name>{CLASSES[label]}</name>\n    <difficult>0</difficult>\n    <bndbox>\n"
        f"      <xmin>{x}</xmin>\n      <ymin>{y}</ymin>\n"
        f"      <xmax>{x + w}</xmax>\n      <ymax>{y + h}</ymax>\n    </bndbox>\n  </object>\n"
        for image, label, (x, y, w, h) in truth()
        if image == index
    ]
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n  <filename>{image_name(index)}</filename>\n'
        f"  <size>\n    <width>{width}</width>\n    <height>{height}</height>\n    <depth>3</depth>\n"
        f"  </size>\n{''.join(objects)}</annotation>\n"
    )


def read_voc(root: Path) -> Boxes | None:
    """VOC by a DOM: names and corners of every object."""
    found: Boxes = Counter()
    for part, listing in VOC_LISTS.items():
        lines = (root / "ImageSets" / "Main" / f"{listing}.txt").read_text().splitlines()
        for name in [line.split()[0] for line in lines if line.strip()]:
            objects = _voc_objects(root / "Annotations" / f"{name}.xml")
            width, height = _size_of(root / "Annotations" / f"{name}.xml")
            for _, (x, y, w, h) in objects or ():
                if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
                    return None
            if objects is None:
                return None
            for label, box in objects:
                found[f"{part}/{name}.png", label, rounded(box)] += 1
    return found


def _voc_objects(path: Path) -> list[tuple[str, tuple[float, ...]]] | None:
    try:
        document = minidom.parse(str(path))
    except (ExpatError, OSError, ValueError, LookupError):
        return None
    try:
        for axis, pixels in zip(("width", "height"), _size_of(path), strict=True):
            if number(_text(document.documentElement, "size", axis)) not in (0, pixels):
                return None
    except IndexError:
        pass  # nothing is said of the size
    except ValueError:
        return None
    objects = []
    for node in document.getElementsByTagName("object"):
        try:
            low_x, low_y, high_x, high_y = (
                number(_text(node, "bndbox", name)) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            name = _text(node, "name").strip()
        except (ValueError, IndexError):
            return None
        if not name:
            return None
        objects.append((name, (low_x, low_y, high_x - low_x, high_y - low_y)))
    return objects


def _size_of(path: Path) -> tuple[int, int]:
    """Width and height of the image of an annotation file."""
    with Image.open(path.parents[1] / "JPEGImages" / f"{path.stem}.png") as image:
        return image.size


def _text(node: Any, *path: str) -> str:
    """Text below the first child elements of these names."""
    for name in path:
        node = next((c for c in node.childNodes if getattr(c, "tagName", "") == name), None)
        if node is None:
            raise IndexError(name)
    return "".join(
        c.data for c in node.childNodes if c.nodeType in (c.TEXT_NODE, c.CDATA_SECTION_NODE)
    )


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def number(text: str) -> float:
    """A finite number in ASCII.

    Raises:
        ValueError: it is none.
    """
    if not NUMBER.fullmatch(text.strip()) or not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def prepare_yolo(folder: Path) -> Source:
    """The truth in YOLO's form."""
    root = folder / "yolo"
    for part, indices in PARTS.items():
        for name in ("images", "labels"):
            (root / name / part).mkdir(parents=True)
        for index in indices:
            Image.new("RGB", SIZES[index]).save(root / "images" / part / image_name(index))
            label = root / "labels" / part / f"{Path(image_name(index)).stem}.txt"
            label.write_text("".join(_yolo_lines(index)))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(
        f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}"
    )
    files = [*sorted(root.glob("labels/*/*.txt")), root / "data.yaml", root / "data.yaml"]
    texts = {path: path.read_text() for path in files}
    return checked(Source("yolo", root, files, texts, read_yolo))


def _yolo_lines(index: int) -> Iterator[str]:
    width, height = SIZES[index]
    for image, label, (x, y, w, h) in truth():
        if image == index:
            shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            yield f"{label} {' '.join(f'{share:.6f}' for share in shares)}\n"


def read_yolo(root: Path) -> Boxes | None:
    """YOLO by its rules: lines of boxes, with or without a confidence, or of polygons."""
    names = _yolo_names(root / "data.yaml")
    if names is None:
        return None
    found: Boxes = Counter()
    for part, indices in PARTS.items():
        for index in indices:
            path = root / "labels" / part / f"{Path(image_name(index)).stem}.txt"
            boxes = _yolo_boxes(path, names, SIZES[index])
            if boxes is None:
                return None
            for name, box in boxes:
                found[f"{part}/{image_name(index)}", name, rounded(box)] += 1
    return found


def _yolo_names(path: Path) -> list[str] | None:
    try:
        names = yaml.safe_load(path.read_bytes())["names"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):
        if sorted(names, key=str) != list(range(len(names))):
            return None
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        return None
    return (
        None
        if any(isinstance(name, dict | list) or name is None for name in names)
        else [str(n) for n in names]
    )


def _yolo_boxes(
    path: Path, names: Sequence[str], size: tuple[int, int]
) -> list[tuple[str, tuple[float, ...]]] | None:
    boxes = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        for words in (line.split() for line in lines):
            if words:
                label, *shares = (number(word) for word in words)
                box = _yolo_box(shares, size)
                if box is None or label != int(label) or not 0 <= label < len(names):
                    return None
                boxes.append((names[int(label)], box))
    except ValueError:
        return None
    return boxes


def _yolo_box(shares: Sequence[float], size: tuple[int, int]) -> tuple[float, ...] | None:
    if any(not -0.01 <= share <= 1.01 for share in shares):
        return None
    width, height = size
    if len(shares) in (4, 5):
        x, y, w, h = shares[:4]
        return (x - w / 2) * width, (y - h / 2) * height, w * width, h * height
    if len(shares) < 6 or len(shares) % 2:
        return None
    xs, ys = shares[::2], shares[1::2]
    return (
        min(xs) * width,
        min(ys) * height,
        (max(xs) - min(xs)) * width,
        (max(ys) - min(ys)) * height,
    )


KINDS = [
    Kind("voc", "mutated annotations in VOC's XML", 1000, prepare_voc, trial_converted),
    Kind("yolo", "mutated labels and names in YOLO's form", 1000, prepare_yolo, trial_converted),
]
