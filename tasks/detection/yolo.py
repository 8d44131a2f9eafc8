"""Data sets in YOLO's layouts: a text file per image, a line per object, in shares of the image."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

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

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""Parts, and what their folders are called."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

ROUNDING = 1e-3
"""By so much a share may miss the range from 0 to 1."""

BOX_VALUES = 4
"""Centre and size; a fifth is a confidence, six and more are the points of an outline."""


class _Texts(yaml.BaseLoader):  # type: ignore[misc]  # yaml has no types
    """Reads YAML with all values as the text that stands there: ``no`` is a name, not a truth value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a map; refuse a key that stands there twice, of which the last value would count."""
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "a key stands twice", node.start_mark
            )
        return found


def convert_yolo(source: Path, out: Path) -> list[Part]:
    """Convert images and labels; classes keep the order and the names that the source gives them.

    Names stand in ``data.yaml`` (or the only YAML file), else in ``classes.txt``. Images lie where the YAML
    file says (``train``, ``val``: folders, lists of images, or several of either), or in ``images/train`` or
    ``train/images``; of an image in a folder ``images`` the labels lie in ``labels`` beside it, else beside
    the image. Paths are relative to ``path`` in the YAML file, which is relative to that file's folder.

    Args:
        source: folder of the data set, or its YAML file.
        out: folder to make.

    Raises:
        TaskError: a file is missing or not in YOLO's form; it is named, with the line.
    """
    settings_file = source if _is_yaml(source) else _settings_file(source)
    source = source.parent if _is_yaml(source) else source
    settings = _settings(settings_file) if settings_file else {}
    classes = _classes(source, settings_file, settings)
    parts = {}
    for part in PARTS:
        images = _images(source, part, settings)
        _check_labels(images)
        parts[part] = [_labelled(image, classes) for image in images]
    return write_parts(parts, classes, out)


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def _settings_file(source: Path) -> Path | None:
    if not source.is_dir():
        raise TaskError(f"{source}: no such data set folder")
    if (source / "data.yaml").is_file():
        return source / "data.yaml"
    found = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise TaskError(
            f"{source}: which of {names} describes the data? give that file in the place of the folder"
        )
    return found[0] if found else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        read = yaml.load("\n".join(lines_of(path)), Loader=_Texts)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split()) or "too deeply nested"
        raise TaskError(f"{path}: not readable as YAML ({text[:200]})") from error
    if not isinstance(read, dict):
        raise TaskError(f"{path}: holds no keys ('names', 'train', 'val')")
    if "kpt_shape" in read:
        raise TaskError(
            f"{path}: describes key points ('kpt_shape'), and boxes or outlines are needed"
        )
    return read


def _classes(source: Path, settings_file: Path | None, settings: dict[str, Any]) -> list[str]:
    """Names by index, from the YAML file or ``classes.txt``; both must say the same."""
    listing = source / "classes.txt"
    listed = [line.strip() for line in lines_of(listing)] if listing.is_file() else []
    while listed and not listed[-1]:
        listed.pop()
    if not all(listed):
        raise TaskError(f"{listing}: an empty line between names, which are counted by line")
    if settings_file is None or "names" not in settings:
        if not listed:
            raise TaskError(f"{source}: class names stand neither in data.yaml nor in classes.txt")
        return listed
    names = _names(settings_file, settings["names"])
    if listed and listed != names:
        raise TaskError(
            f"{settings_file} and {listing} give other names; remove the one that is wrong"
        )
    count = settings.get("nc", str(len(names)))
    if count != str(len(names)):
        raise TaskError(f"{settings_file}: 'nc' is {count!a}, but there are {len(names)} names")
    return names


def _names(path: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        keys = [str(index) for index in range(len(names))]
        if set(names) != set(keys):
            raise TaskError(f"{path}: the keys of 'names' must be 0, 1, ... without a gap")
        names = [names[key] for key in keys]
    if not isinstance(names, list) or not names or not all(_is_name(name) for name in names):
        raise TaskError(f"{path}: 'names' must be a list of class names, or a map from 0, 1, ...")
    return [name.strip() for name in names]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _images(source: Path, part: str, settings: dict[str, Any]) -> list[Path]:
    """Images of a part, sorted by path.

    Raises:
        TaskError: there are none.
    """
    places = _places(source, settings, part)
    if not places:
        names = PARTS[part]
        folders = [source / "images" / name for name in names]
        folders += [source / name / "images" for name in names]
        places = [folder for folder in folders if folder.is_dir()][:1]
        if not places:
            raise TaskError(f"{folders[0]}: no such folder of images, nor {folders[len(names)]}")
    roots = _roots(source, settings)
    found = [image for place in places for image in _images_at(place, roots)]
    if not found:
        raise TaskError(f"{places[0]}: holds no images ({', '.join(SUFFIXES)})")
    return sorted(set(found))


def _places(source: Path, settings: dict[str, Any], part: str) -> list[Path]:
    """Folders and lists that the YAML file names and that are there; paths in it may be another machine's."""
    said = settings.get(part) or []
    said = said if isinstance(said, list) else [said]
    if not all(isinstance(text, str) and "\0" not in text for text in said):
        raise TaskError(f"{source}: '{part}' in the YAML file must be a path or a list of paths")
    roots = _roots(source, settings)
    found = []
    for text in said:
        # Roboflow writes ../train/images for what lies beside the file.
        tries = [base / form for base in roots for form in (text, text.removeprefix("../"))]
        there = [path for path in tries if path.exists()]
        found += there[:1]
    if found and len(found) < len(said):
        raise TaskError(f"{source}: '{part}' names {len(said)} places, and {len(found)} are there")
    return found


def _roots(source: Path, settings: dict[str, Any]) -> list[Path]:
    """Folders that paths may be relative to: ``path`` of the YAML file, then the file's own."""
    root = settings.get("path")
    return [source / root, source] if isinstance(root, str) and "\0" not in root else [source]


def _images_at(place: Path, roots: Sequence[Path]) -> list[Path]:
    """The images below a folder, or of a list, whose lines are relative to its folder or to ``roots``."""
    if place.is_dir():
        found = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        return [path for path in found if not path.name.startswith(".") and path.is_file()]
    paths = []
    for number, line in enumerate(lines_of(place), start=1):
        if line.strip():
            tries = [root / line.strip() for root in (place.parent, *roots)]
            there = [path for path in tries if path.is_file()]
            if not there:
                raise TaskError(f"{place}:{number}: no such image: {line.strip()!a}")
            paths.append(there[0])
    return paths


def _label_file(image: Path) -> Path:
    """``labels`` in the place of the last folder ``images``; without such a folder beside the image."""
    folders = list(image.parent.parts)
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return Path(*folders) / f"{image.stem}.txt"


def _check_labels(images: Sequence[Path]) -> None:
    """Refuse labels of images that are not there, and images of which none has labels.

    Raises:
        TaskError: with the folder, or the first few label files.
    """
    wanted = {_label_file(image) for image in images}
    folders = {path.parent for path in wanted}
    missing = sorted(folder for folder in folders if not folder.is_dir())
    if missing:
        raise TaskError(f"{missing[0]}: no such folder of labels")
    there = {path for folder in folders for path in folder.glob("*.txt")}
    over = sorted(path.name for path in there - wanted if path.name != "classes.txt")
    if over and folders.isdisjoint(image.parent for image in images):
        raise TaskError(
            f"{min(folders)}: {len(over)} label files have no image ({', '.join(over[:3])}); images end in "
            f"{', '.join(SUFFIXES)}"
        )


def _labelled(image: Path, classes: Sequence[str]) -> Labelled:
    """An image with its objects; no label file, or an empty one: there is none on it."""
    path = _label_file(image)
    width, height = size_of(image)
    found: list[Marked] = []
    for number, line in enumerate(lines_of(path) if path.is_file() else [], start=1):
        if line.strip():
            try:
                found.append(_marked(line.split(), classes, width, height))
            except ValueError as error:
                raise TaskError(f"{path}:{number}: {error}") from error
    once = tuple(
        dict.fromkeys(found)
    )  # a line that stands there twice is one object, as for Ultralytics
    return Labelled(image, width, height, once, len(found) - len(once))


def _marked(words: Sequence[str], classes: Sequence[str], width: int, height: int) -> Marked:
    """A line: class, then centre and size or points of an outline, then perhaps a confidence."""
    if len(words) < BOX_VALUES + 1:
        raise ValueError("not 'class x y width height', nor 'class x1 y1 x2 y2 x3 y3 ...'")
    label = _number(words[0])
    if label != int(label) or not 0 <= label < len(classes):
        raise ValueError(f"class {words[0]!a}, but classes are 0 to {len(classes) - 1}")
    values = [_share(word) for word in words[1:]]
    if len(values) % 2:
        values.pop()  # a confidence
    if len(values) == BOX_VALUES:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        return Marked(int(label), box)
    across = [value * width for value in values[::2]]
    down = [value * height for value in values[1::2]]
    polygon = tuple(number for point in zip(across, down, strict=True) for number in point)
    left, top = min(across), min(down)
    return Marked(int(label), (left, top, max(across) - left, max(down) - top), polygon)


def _number(word: str) -> float:
    if NUMBER.fullmatch(word) is None:
        raise ValueError(f"{word!a} is no number")
    value = float(word)
    if math.isinf(value):  # 1e999
        raise ValueError(f"{word!a} is no number")
    return value


def _share(word: str) -> float:
    value = _number(word)
    if not -ROUNDING <= value <= 1 + ROUNDING:
        raise ValueError(
            f"{word!a} is no share of the image from 0 to 1; numbers in pixels are refused"
        )
    return min(max(value, 0.0), 1.0)
