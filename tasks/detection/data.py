"""Images and annotations in COCO's form, checked and normalised before anything else looks at them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks.detection.annotations import normalise
from vit_ptq_bench.tasks.detection.pictures import read_header
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import content_ids, read_content
from vit_ptq_bench.values import object_of


@dataclass(frozen=True)
class CocoFiles:
    """One set of images with their annotations in COCO's form.

    Attributes:
        annotations: the JSON file.
        images: the folder of the images.
        classes: names of the categories, in the order of the file's list, which is that of mmdet's labels.
        has_masks: whether masks can be judged.
        image_ids: ids of all images, ascending.
        digest: SHA-256 of the annotation file's bytes as they were read.
        data: the normalised annotations, see `annotations.Annotations`.
        unsegmented: ids of the annotations without a mask.
        notes: what was changed when they were read, a sentence each.
    """

    annotations: Path
    images: Path
    classes: tuple[str, ...]
    has_masks: bool
    image_ids: tuple[int, ...]
    digest: str
    data: Mapping[str, Any] = field(repr=False, compare=False)
    unsegmented: frozenset[int] = field(repr=False)
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An image that is read for a run.

    Attributes:
        path: the file.
        image_id: in the annotations.
        content: SHA-256 of the file's bytes.
        size: (height, width) in pixels that the annotation says; None: nothing says it.
    """

    path: Path
    image_id: int
    content: str
    size: tuple[int, int] | None = None


def read_coco(annotations: Path, images: Path) -> CocoFiles:
    """Check and normalise an annotation file.

    Raises:
        TaskError: the file or the folder is missing, the JSON is truncated, has no images or categories, an
            object belongs to an unknown category or image, a box or mask is none or not one of its image;
            the first few are named.
    """
    if not annotations.is_file():
        raise TaskError(f"{annotations}: no such annotation file")
    if not images.is_dir():
        raise TaskError(f"{images}: no such folder of images")
    content = read_content(annotations, None)
    data = _json(annotations, content)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise TaskError(f"{annotations}: the list {key!r} of COCO's form is missing")
    if not data["images"] or not data["categories"]:
        raise TaskError(f"{annotations}: there are no images, or no categories")
    read = normalise(data, annotations, images)
    return CocoFiles(
        annotations,
        images,
        tuple(category["name"] for category in read.data["categories"]),
        read.has_masks,
        tuple(sorted(image["id"] for image in read.data["images"])),
        hashlib.sha256(content).hexdigest(),
        read.data,
        read.unsegmented,
        read.notes,
    )


def _json(path: Path, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content, object_pairs_hook=object_of)
    except (ValueError, RecursionError) as error:
        words = "too deeply nested" if isinstance(error, RecursionError) else error
        raise TaskError(f"{path}: not readable as JSON ({words}); it may be truncated") from error
    if not isinstance(data, dict):
        raise TaskError(f"{path}: holds no object of COCO's form")
    return data


def check_pictures(files: CocoFiles, indices: Sequence[int]) -> tuple[str, ...]:
    """Hold the images to judge on against their annotations, before any work.

    Args:
        files: from `read_coco`.
        indices: of the images that are judged, in the file's order.

    Returns:
        What has to be said of the images, a sentence each.

    Raises:
        TaskError: images are missing, are no images, have another size than the annotations say, or none of
            those judged shows an object; the first few are named.
    """
    entries = files.data["images"]
    paths = [files.images / entry["file_name"] for entry in entries]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise TaskError(
            f"{files.images} lacks {len(missing)} of the {len(paths)} images of {files.annotations}: "
            f"{', '.join(missing[:3])}"
        )
    ids = {entries[i]["id"] for i in indices}
    objects = files.data["annotations"]
    if not any(entry["image_id"] in ids and not entry["iscrowd"] for entry in objects):
        raise TaskError(
            f"{files.annotations}: none of the {len(ids)} images to judge on shows an object, so that "
            "average precision has no value; judge on more images"
        )
    turned = 0
    for i in indices:
        header = read_header(paths[i])
        turned += header.orientation > 1
        width, height = entries[i]["width"], entries[i]["height"]
        if not header.fits(width, height):
            raise _other_size(files, paths[i], (height, width), (header.height, header.width))
    if not turned:
        return ()
    return (
        f"{turned} of {len(ids)} images have an EXIF orientation and are read upright, as mmdet reads them; "
        "annotations must be those of the upright images",
    )


def require_size(
    files: CocoFiles, picture: Picture, decoded: tuple[int, int], said: tuple[int, int]
) -> None:
    """Refuse an image that is not of the size (height, width) that its annotation says.

    Raises:
        TaskError: with both sizes.
    """
    if decoded != said:
        raise _other_size(files, picture.path, said, decoded)


def _other_size(
    files: CocoFiles, path: Path, said: tuple[int, int], found: tuple[int, int]
) -> TaskError:
    hint = ""
    if said == found[::-1]:
        hint = (
            "; they are swapped, or the annotation is that of the image before EXIF turns it upright, "
            "as mmdet reads it"
        )
    return TaskError(
        f"{files.annotations}: {path.name} is {said[1]} x {said[0]} pixels, but the image that is read has "
        f"{found[1]} x {found[0]}{hint}"
    )


def judged_pictures(files: CocoFiles, indices: Sequence[int]) -> list[Picture]:
    """Return the images at ``indices`` of the file's list, with the hashes of their contents."""
    entries = [files.data["images"][i] for i in indices]
    paths = [files.images / entry["file_name"] for entry in entries]
    return [
        Picture(path, entry["id"], content, (entry["height"], entry["width"]))
        for path, entry, content in zip(paths, entries, content_ids(paths), strict=True)
    ]


def plain_pictures(paths: Sequence[Path]) -> list[Picture]:
    """Return images without annotations, with the hashes of their contents."""
    return [
        Picture(path, number, content)
        for number, (path, content) in enumerate(zip(paths, content_ids(paths), strict=True))
    ]


def contents_id(pictures: Sequence[Picture], head: str = "") -> str:
    """Return ``sha256:...`` over the names and contents of images in their order, after ``head``."""
    digest = hashlib.sha256(head.encode())
    for picture in pictures:
        name = picture.path.name.encode("utf-8", "surrogateescape")
        digest.update(name + f"\0{picture.content}\n".encode())
    return f"sha256:{digest.hexdigest()}"
