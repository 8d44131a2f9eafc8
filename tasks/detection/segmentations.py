"""Segmentations of COCO's form: polygons and run lengths, checked before pycocotools looks at them.

pycocotools takes a polygon of two points for a box, casts any number to a C integer, and reads run lengths
beyond their end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

CHUNK_BITS = 5
"""Bits of a run's length in one character of compressed run lengths; a sixth says that more follow."""

MOST_CHUNKS = 7

FEWEST_NUMBERS = 6
"""Coordinates of a triangle."""


class Unreadable(ValueError):
    """A segmentation is no such thing; the text says what it is instead."""


@dataclass(frozen=True)
class Mask:
    """A segmentation in a form that pycocotools reads as it is meant.

    Attributes:
        value: polygons, or a dictionary with ``size`` and ``counts``; None: there is no pixel in it.
        area: number of pixels.
        box: smallest box around the pixels, (x, y, width, height).
        change: what was changed, or "".
    """

    value: Any
    area: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    change: str = ""


NO_MASK = Mask(None)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number; truth values are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def read_mask(value: Any, height: int, width: int) -> Mask:
    """Check the segmentation of an object.

    Args:
        value: as it stands in the annotation; None, an empty list or an empty dictionary: none.
        height: of the image.
        width: of the image.

    Raises:
        Unreadable: it is no segmentation, or not one of an image of this size.
    """
    if value is None or value == [] or value == {}:
        return NO_MASK
    if isinstance(value, dict):
        return _read_runs(value, height, width)
    if isinstance(value, list):
        return _read_polygons(value, height, width)
    raise Unreadable("segmentation that is neither polygons nor run lengths")


def _read_polygons(value: list[Any], height: int, width: int) -> Mask:
    change = ""
    if all(is_number(number) for number in value):
        value, change = [value], "a polygon without a list around it taken as the only one"
    kept = []
    for polygon in value:
        _check_polygon(polygon, height, width)
        if len(polygon) < FEWEST_NUMBERS:
            change = "polygons of fewer than three points left out"
        else:
            kept.append(polygon)
    if not kept:
        return Mask(None, change=change)
    found = _measured(kept, height, width)
    return found if found.value is None else Mask(kept, found.area, found.box, change)


def _check_polygon(polygon: object, height: int, width: int) -> None:
    if not isinstance(polygon, list) or not all(is_number(number) for number in polygon):
        raise Unreadable("polygon that is no list of finite numbers")
    if len(polygon) % 2:
        raise Unreadable("polygon with an odd number of coordinates")
    for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
        if numbers and (min(numbers) < -side or max(numbers) > 2 * side):
            raise Unreadable("polygon far outside of its image")


def _read_runs(value: dict[str, Any], height: int, width: int) -> Mask:
    counts = value.get("counts")
    if value.get("size") != [height, width]:
        raise Unreadable("mask of another size than its image")
    if isinstance(counts, str):
        runs = _uncompressed(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise Unreadable("run lengths that are neither text nor whole numbers")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise Unreadable("run lengths that do not add up to the pixels of the image")
    return _measured({"size": [height, width], "counts": counts}, height, width)


def _uncompressed(text: str) -> list[int]:
    """Decode COCO's compressed run lengths; each from the fourth on is a difference to the last but one."""
    if not text or not text.isascii():
        raise Unreadable("run lengths that are not COCO's compressed ones")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    lengths = np.diff(np.append(starts, len(codes)))
    if codes.min() < 0 or codes.max() > 63 or not last[-1] or lengths.max() > MOST_CHUNKS:
        raise Unreadable("run lengths that are not COCO's compressed ones")
    shifts = CHUNK_BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    negative = codes[starts + lengths - 1] & 16 != 0
    values -= np.where(negative, 1 << (CHUNK_BITS * lengths), 0)
    runs = [int(run) for run in values]
    for index in range(3, len(runs)):
        runs[index] += runs[index - 2]
    return runs


def _measured(value: Any, height: int, width: int) -> Mask:
    """A mask that was checked, with its size; of no pixels: none."""
    if isinstance(value, list):
        code = coco_mask.merge(coco_mask.frPyObjects(value, height, width))
    elif isinstance(value["counts"], list):
        code = coco_mask.frPyObjects(value, height, width)
    else:
        code = value
    area = int(coco_mask.area(code))
    if area == 0:
        return Mask(None, change="masks without a pixel")
    x, y, w, h = (float(number) for number in coco_mask.toBbox(code))
    return Mask(value, float(area), (x, y, w, h))
