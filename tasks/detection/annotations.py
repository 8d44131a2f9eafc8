"""Annotations in COCO's form, normalised once: everything after this reads the same values.

Ids become whole numbers that are no library's word for "none", what may be missing is there, and an object
that no detector can find is none. What is not clear is refused with its place.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from vit_ptq_bench.tasks.detection.findings import Findings
from vit_ptq_bench.tasks.detection.pictures import MOST_PIXELS, read_header
from vit_ptq_bench.tasks.detection.segmentations import Mask, Unreadable, is_number, read_mask

Json = dict[str, Any]

LARGEST_ID = 2**53
"""pycocotools keeps ids as 64-bit floats."""

LEAST_SIDE = 0.05
"""Pixels: the float32 coordinates of a detector tell nothing smaller."""

LARGEST_AREA = 1e10
"""Of an object that pycocotools counts at all."""

SLACK = 1.0
"""Pixels that a box may reach out of its image without a word: rounding, or counting from 1."""

CORNERS_SHARE = 0.1
"""Of the boxes: if more reach out of their images, and all could be corners, they are taken for such."""

LONGEST_PATH, LONGEST_NAME = 3000, 255
"""Bytes; file systems refuse longer ones with errors of their own."""


@dataclass(frozen=True)
class Annotations:
    """What stands in an annotation file.

    Attributes:
        data: ``images``, ``annotations`` and ``categories`` in COCO's form, normalised; categories have the
            ids 1, 2, ... in their order.
        has_masks: whether masks can be judged: at least half of the objects have one.
        unsegmented: ids of the annotations without a mask.
        notes: what was changed, a sentence each.
    """

    data: Json
    has_masks: bool
    unsegmented: frozenset[int]
    notes: tuple[str, ...]


def normalise(data: Mapping[str, Any], path: Path, folder: Path) -> Annotations:
    """Check and normalise annotations.

    Args:
        data: the lists ``images``, ``annotations`` and ``categories``.
        path: the file, for errors.
        folder: of the images, for sizes that are missing.

    Raises:
        TaskError: something is wrong; each kind is named with its first places.
    """
    found = Findings()
    categories = _categories(data["categories"], found)
    images = _images(data["images"], folder, found)
    found.refuse(path)
    objects = _Objects(images, categories, found)
    objects.read(data["annotations"])
    found.refuse(path, len(data["annotations"]))
    entries = objects.entries
    unsegmented = frozenset(entry["id"] for entry in entries if not entry["segmentation"])
    has_masks = bool(entries) and len(unsegmented) <= len(entries) / 2
    if unsegmented and len(unsegmented) < len(entries):
        places = [f"annotations[{objects.positions[number - 1]}]" for number in sorted(unsegmented)]
        what = (
            "no mask, so that it neither counts as found nor as missed in mask AP"
            if has_masks
            else "mask AP is not judged, for most objects have no mask; there is none"
        )
        for place in places:
            found.changed(what, place)
    data = {
        "images": list(images.values()),
        "annotations": entries,
        "categories": list(categories.values()),
    }
    return Annotations(data, has_masks, unsegmented, found.notes(path))


def _categories(entries: Sequence[Any], found: Findings) -> dict[Hashable, Json]:
    """Categories with the ids 1, 2, ..., by the id that the file has, in the file's order as in mmdet."""
    kept: dict[Hashable, Json] = {}
    originals: dict[Hashable, Any] = {}
    for place, entry, key in _with_ids("categories", entries, found):
        name = entry.get("name")
        if isinstance(name, str) or is_number(name):
            if key not in kept:
                kept[key] = {"id": len(kept) + 1, "name": str(name)}
                originals[key] = entry
            elif originals[key] != entry:
                found.wrong("id that another category has", place)
        else:
            found.wrong("no name", place)
    names = [category["name"] for category in kept.values()]
    if len(set(names)) < len(names):
        found.changed("several categories have one name; they stay apart")
    if not _ascend(list(kept)):
        found.changed("classes are in the order of the list 'categories', which is not that of ids")
    return kept


def _images(entries: Sequence[Any], folder: Path, found: Findings) -> dict[Hashable, Json]:
    """Images with ids and sizes, by the id that the file has."""
    kept: dict[Hashable, Json] = {}
    originals: dict[Hashable, Any] = {}
    for place, entry, key in _with_ids("images", entries, found):
        if key in kept:
            if originals[key] != entry:
                found.wrong("id that another image has", place)
            else:
                found.changed("repeated image entry left out", place)
            continue
        name = entry.get("file_name")
        if not _is_file_name(name):
            found.wrong("no file_name that a file can have", place)
            continue
        size = _image_size(entry, place, folder / name, found)
        if size is not None:
            kept[key] = {"id": key, "file_name": name, "width": size[0], "height": size[1]}
            originals[key] = entry
    _number_images(kept, found)
    if len({image["file_name"] for image in kept.values()}) < len(kept):
        found.changed("an image file stands there under several ids, and counts as often")
    return kept


def _number_images(images: dict[Hashable, Json], found: Findings) -> None:
    """Keep ids that are whole numbers; else number all images in the file's order."""
    if all(type(key) is int and 0 <= key < LARGEST_ID for key in images):
        return
    found.changed("image ids that are no whole numbers from 0 to 2^53; images were numbered anew")
    for number, image in enumerate(images.values(), start=1):
        image["id"] = number


def _image_size(entry: Json, place: str, path: Path, found: Findings) -> tuple[int, int] | None:
    """Width and height: the annotation's, or the file's where it says none."""
    sides = [entry.get(name) for name in ("width", "height")]
    if any(side is None or (is_number(side) and side == 0) for side in sides):
        header = read_header(path)
        found.changed("width and height taken from the image file", place)
        return header.width, header.height
    numbers = [side for side in sides if is_number(side) and side > 0 and side == int(side)]
    if len(numbers) < len(sides):
        found.wrong("width or height that is no whole number of pixels", place)
        return None
    width, height = map(int, numbers)
    if width * height > MOST_PIXELS:
        found.wrong(f"image of more than {MOST_PIXELS} pixels", place)
        return None
    return width, height


class _Objects:
    """The annotated objects, numbered 1, 2, ... in the file's order."""

    def __init__(
        self, images: Mapping[Hashable, Json], categories: Mapping[Hashable, Json], found: Findings
    ) -> None:
        self.entries: list[Json] = []
        self.positions: list[int] = []
        self._images, self._categories, self._found = images, categories, found
        self._ids: dict[Hashable, Any] = {}
        self._beyond = self._corners = self._shares = self._boxes = 0

    def read(self, entries: Sequence[Any]) -> None:
        """Check and normalise all annotations."""
        for position, entry in enumerate(entries):
            place = f"annotations[{position}]"
            if not isinstance(entry, dict):
                self._found.wrong("no object", place)
            elif not self._is_repeated(entry, place):
                normalised = self._read(entry, place)
                if normalised is not None:
                    self.positions.append(position)
                    self.entries.append(normalised | {"id": len(self.entries) + 1})
        self._judge_unit()

    def _is_repeated(self, entry: Json, place: str) -> bool:
        """Whether an equal annotation had the same id; one that differs keeps its place under a new id."""
        key = _key(entry.get("id"))
        if key is None or (isinstance(key, int) and not 0 < key < LARGEST_ID):
            self._found.changed(
                "annotation id missing or not a whole number above 0, made anew", place
            )
            return False
        if isinstance(key, str | float):
            self._found.changed("annotation id that is no whole number, made anew", place)
        if key in self._ids and self._ids[key] == entry:
            self._found.changed("repeated annotation left out", place)
            return True
        if key in self._ids:
            self._found.changed("annotation id that another one has, made anew", place)
        self._ids[key] = entry
        return False

    def _read(self, entry: Json, place: str) -> Json | None:
        found = self._found
        image = self._images.get(_key(entry.get("image_id")))
        category = self._categories.get(_key(entry.get("category_id")))
        crowd = entry.get("iscrowd")
        for part, what in ((image, "image_id"), (category, "category_id")):
            if part is None:
                found.wrong(f"unknown {what}", f"{place} ({_shown(entry.get(what))})")
        if crowd not in (None, 0, 1):
            found.wrong("iscrowd that is neither 0 nor 1", place)
        box = _box(entry.get("bbox"))
        if box is None:
            found.wrong("no bbox of four finite numbers (x, y, width, height)", place)
        if image is None or category is None or box is None or crowd not in (None, 0, 1):
            return None
        if not self._check_box(box, image, place):
            return None
        if crowd is None:
            found.changed("iscrowd missing, taken as 0", place)
        mask = self._mask(entry, image, box, place)
        if mask is None:
            return None
        return entry | {
            "image_id": image["id"],
            "category_id": category["id"],
            "bbox": entry["bbox"],
            "area": self._area(entry.get("area"), mask, box, place),
            "iscrowd": int(crowd or 0),
            "segmentation": mask.value,
        }

    def _check_box(self, box: Sequence[float], image: Json, place: str) -> bool:
        """Whether a detector can find the box; it is noted how boxes of this file lie."""
        found = self._found
        x, y, w, h = box
        width, height = image["width"], image["height"]
        self._boxes += 1
        self._shares += max(x + w, y + h) <= 1 and max(width, height) > 2
        self._corners += 0 <= x < w <= width + SLACK and 0 <= y < h <= height + SLACK
        beyond = max(-x, -y, x + w - width, y + h - height) > SLACK
        self._beyond += beyond
        if w < 0 or h < 0:
            found.wrong("bbox of negative width or height", place)
        elif x < -width or y < -height or x + w > 2 * width or y + h > 2 * height:
            found.wrong("bbox far outside of its image", place)
        elif w < LEAST_SIDE or h < LEAST_SIDE:
            found.left_out("bbox of no size", place)
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            found.left_out("bbox outside of its image", place)
        else:
            if beyond:
                found.changed("bbox that reaches out of its image, kept as it is", place)
            return True
        return False

    def _mask(self, entry: Json, image: Json, box: Sequence[float], place: str) -> Mask | None:
        """The object's mask; None if it is wrong."""
        try:
            mask = read_mask(entry.get("segmentation"), image["height"], image["width"])
        except Unreadable as error:
            self._found.wrong(str(error), place)
            return None
        if mask.value is not None and not _meet(box, mask.box):
            self._found.wrong("mask and bbox that do not meet", place)
            return None
        if mask.change:
            self._found.changed(mask.change, place)
        return mask

    def _area(self, area: Any, mask: Mask, box: Sequence[float], place: str) -> float:
        """The annotation's own area where it can be one; else the mask's, or the box's without a mask."""
        most = min(LARGEST_AREA, (box[2] + 2 * SLACK) * (box[3] + 2 * SLACK))
        if is_number(area) and 0 < area <= most:
            return area
        self._found.changed("area missing or impossible, computed from mask or box", place)
        return box[2] * box[3] if mask.value is None else mask.area

    def _judge_unit(self) -> None:
        """Boxes in another unit or order than COCO's show only in all of them together."""
        if self._boxes and self._shares == self._boxes:
            self._found.wrong(
                "boxes within 1 x 1 pixel; they look like shares of the image, and COCO's are pixels",
                "all annotations",
            )
        elif self._corners == self._boxes and self._beyond > CORNERS_SHARE * self._boxes:
            self._found.wrong(
                "boxes that look like corners (x1, y1, x2, y2); COCO's are (x, y, width, height)",
                "all annotations",
            )


def _with_ids(
    kind: str, entries: Sequence[Any], found: Findings
) -> list[tuple[str, Json, Hashable]]:
    """Place, entry and id of those entries that have an id."""
    kept: list[tuple[str, Json, Hashable]] = []
    for position, entry in enumerate(entries):
        place = f"{kind}[{position}]"
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        if not isinstance(entry, dict):
            found.wrong("no object", place)
        elif key is None:
            found.wrong("no id that is a number or a text", place)
        else:
            kept.append((place, entry, key))
    return kept


def _key(value: object) -> int | float | str | None:
    """An id to look up: 1 and 1.0 are one; None: it is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and is_number(value):
        return int(value) if value == int(value) else value
    return None


def _ascend(keys: Sequence[Hashable]) -> bool:
    numbers = [key for key in keys if isinstance(key, int | float)]
    return len(numbers) < len(keys) or numbers == sorted(numbers)


def _is_file_name(name: object) -> TypeGuard[str]:
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return len(encoded) < LONGEST_PATH and max(map(len, encoded.split(b"/"))) <= LONGEST_NAME


def _box(value: object) -> Sequence[float] | None:
    """Four finite numbers as floats; None: it is no box."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return None
    return [float(number) for number in value]


def _meet(box: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (x, y, width, height) touch, by a pixel's accuracy."""
    return all(
        box[i] <= other[i] + other[i + 2] + SLACK and other[i] <= box[i] + box[i + 2] + SLACK
        for i in (0, 1)
    )


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 20 else f"{text[:17]}..."
