"""Data sets of other layouts, written in the layout that the task ``coco`` reads.

``OUT/train``, ``OUT/val`` get the images, ``OUT/annotations/train.json`` and ``val.json`` what is on them.
`voc` and `yolo` read those layouts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks.detection.pictures import read_header
from vit_ptq_bench.tasks.errors import TaskError

ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Of text files, by the mark that they begin with; UTF-8 without one."""


@dataclass(frozen=True)
class Marked:
    """An object of an image.

    Attributes:
        label: index of its class.
        box: (x, y, width, height) in pixels.
        polygon: x and y of its outline by turns, in pixels; empty: there is none.
    """

    label: int
    box: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """An image file, its upright width and height in pixels, and the objects on it.

    Attributes:
        repeated: number of objects that stood there once more, and are left out.
    """

    path: Path
    width: int
    height: int
    objects: tuple[Marked, ...]
    repeated: int = 0


@dataclass(frozen=True)
class Part:
    """What was written of one part.

    Attributes:
        name: ``train`` or ``val``.
        images: number of images.
        objects: number of objects.
        masks: number of objects with an outline.
        empty: number of images without objects.
        dropped: number of boxes of no size, which were left out.
        repeated: number of objects that stood there once more, which were left out.
    """

    name: str
    images: int
    objects: int
    masks: int
    empty: int
    dropped: int
    repeated: int


def write_parts(
    parts: Mapping[str, Sequence[Labelled]], classes: Sequence[str], out: Path
) -> list[Part]:
    """Write images and annotations of all parts, or nothing.

    Args:
        parts: images by part.
        classes: names of the classes, whose order is kept.
        out: folder to make; it may be there, but empty.

    Raises:
        TaskError: the folder has something in it, or two images have one name.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TaskError(
            f"{out}: is there already; give a new folder, so that nothing old counts among the images"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        (fresh / "annotations").mkdir()
        written = [_write_part(name, images, classes, fresh) for name, images in parts.items()]
        fresh.chmod(0o755)
        fresh.replace(out)
    finally:
        shutil.rmtree(
            fresh, ignore_errors=True
        )  # it has another name by now, unless something failed
    return written


def _write_part(name: str, labelled: Sequence[Labelled], classes: Sequence[str], out: Path) -> Part:
    (out / name).mkdir()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    dropped = empty = 0
    for number, image in enumerate(labelled, start=1):
        target = out / name / image.path.name
        if target.exists():
            raise TaskError(f"{image.path}: another image of {name} has this name; rename one")
        shutil.copyfile(image.path, target)
        facts = {"file_name": target.name, "width": image.width, "height": image.height}
        images.append({"id": number} | facts)
        found = [_annotation(marked, number) for marked in image.objects if min(marked.box[2:]) > 0]
        dropped += len(image.objects) - len(found)
        empty += not found
        objects += [{"id": len(objects) + i} | entry for i, entry in enumerate(found, start=1)]
    data = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": i, "name": text} for i, text in enumerate(classes, start=1)],
    }
    (out / "annotations" / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    masks = sum("segmentation" in entry for entry in objects)
    repeated = sum(image.repeated for image in labelled)
    return Part(name, len(images), len(objects), masks, empty, dropped, repeated)


def _annotation(marked: Marked, image: int) -> dict[str, Any]:
    """An object in COCO's form; the task computes the area of a mask."""
    entry = {"image_id": image, "category_id": marked.label + 1, "bbox": list(marked.box)}
    if marked.polygon:
        return entry | {"segmentation": [list(marked.polygon)], "iscrowd": 0}
    return entry | {"area": marked.box[2] * marked.box[3], "iscrowd": 0}


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file in UTF-8, or in UTF-16 with its mark.

    Raises:
        TaskError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        encoding = next((e for mark, e in ENCODINGS.items() if content.startswith(mark)), "utf-8")
        return content.decode(encoding).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error})") from error


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image as it is read: upright.

    Raises:
        TaskError: it cannot be read, or some decoders turn it and others do not.
    """
    header = read_header(path)
    if not header.certain and header.width != header.height:
        raise TaskError(
            f"{path}: lies on its side by EXIF, which not all decoders heed in this format; save it upright"
        )
    return header.width, header.height
