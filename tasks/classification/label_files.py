"""Ground-truth files: one line per image, in the forms that people have.

``<file name> <label>``, or only ``<label>`` in the order of the sorted file names; separated by blanks, tabs,
commas or semicolons, quoted or not, with or without a header, comments, folders before the names and their
suffixes; and Kaggle's ``ImageId,PredictionString``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vit_ptq_bench.tasks.classification.image_listing import (
    EXTENSIONS,
    Listing,
    Loss,
    Sample,
    is_foreign,
    printable,
)
from vit_ptq_bench.tasks.classification.label_sets import Labels, Word, form_of, read_labels
from vit_ptq_bench.tasks.classification.text_files import read_lines
from vit_ptq_bench.tasks.errors import TaskError

DEVKIT = "ILSVRC2012_validation_ground_truth"
"""Name of the list in ImageNet's development kit, whose ids have an order of their own."""

_BOX = r"n[0-9]{8}(?: -?[0-9.]+){4}"
_BOXES = re.compile(rf"{_BOX}(?: {_BOX})*")
"""Kaggle's ``n01440764 x y w h``, once per box."""

EXPECTED = "expected '<file name> <label>' or '<label>'"


@dataclass(frozen=True)
class Row:
    """A line of a ground-truth file.

    Attributes:
        line: its number, from 1.
        name: of the image, as it stands there; None: the line has only a label.
        label: as it stands there.
    """

    line: int
    name: str | None
    label: str


@dataclass(frozen=True)
class GroundTruth:
    """Labelled images.

    Attributes:
        samples: images and class indices, sorted by path.
        labels: what the labels say.
        note: how the labels were read.
        losses: images without labels, and labels without images.
    """

    samples: tuple[Sample, ...]
    labels: Labels
    note: str
    losses: tuple[Loss, ...] = ()


def read_ground_truth(
    path: Path, listing: Listing, class_map: Mapping[str, int] | None
) -> GroundTruth:
    """Return the images of a flat folder with the labels of a file.

    Raises:
        TaskError: an unreadable file, a line of another form, a label that `read_labels` refuses, labels
            without names that do not fit the images one by one; with the line.
    """
    rows = _rows(path)
    images = _Images(listing.images)
    header = ""
    if len(rows) > 1 and _is_header(rows[0], images, class_map):
        header, rows = ", after a header line", rows[1:]
    rows = [row for row in rows if not _is_of_foreign_file(row)]
    if not rows:
        raise TaskError(f"{path}: holds no labels; {EXPECTED}, one line per image")
    if DEVKIT.lower() in path.name.lower() and all(row.label.isdecimal() for row in rows):
        raise TaskError(
            f"{path}: the ids of ImageNet's devkit count from 1 in an order of their own, and are no "
            "indices; give the WordNet id of each image instead (Kaggle's LOC_val_solution.csv has them)"
        )
    if rows[0].name is None:
        return _in_order(path, rows, listing, class_map, header)
    return _by_name(path, rows, images, listing, class_map, header)


def _in_order(
    path: Path,
    rows: Sequence[Row],
    listing: Listing,
    class_map: Mapping[str, int] | None,
    header: str,
) -> GroundTruth:
    """The first label is that of the first file: nothing may be missing, and the order not in doubt."""
    if len(rows) != len(listing.images) or listing.left_out:
        files = listing.losses()[0]
        raise TaskError(
            f"{path} labels {len(rows)} images, but {listing.folder} holds {len(listing.images)}"
            + (f" ({files})" if files.count else "")
            + "; labels without names have to fit one by one"
        )
    names = [image.name for image in listing.images]
    for name, counted in zip(names, sorted(names, key=_natural), strict=True):
        if name != counted:
            raise TaskError(
                f"{path}: labels without names need file names in a clear order, but in {listing.folder} "
                f"{name!r} comes before {counted!r} as text; write '<file name> <label>'"
            )
    labels = read_labels([Word(row.label, f"{path}, line {row.line}") for row in rows], class_map)
    samples = tuple(zip(listing.images, labels.indices, strict=True))
    return GroundTruth(samples, labels, _note(path, rows, labels, f"in the order of files{header}"))


def _by_name(
    path: Path,
    rows: Sequence[Row],
    images: _Images,
    listing: Listing,
    class_map: Mapping[str, int] | None,
    header: str,
) -> GroundTruth:
    labels = read_labels([Word(row.label, f"{path}, line {row.line}") for row in rows], class_map)
    found: dict[Path, tuple[int, int]] = {}
    strange: list[str] = []
    for row, index in zip(rows, labels.indices, strict=True):
        image = images.find(row.name or "")
        if image is None:
            strange.append(row.name or "")
        elif found.setdefault(image, (index, row.line))[0] != index:
            raise TaskError(
                f"{path}, line {row.line}: {image.name} has another label in line {found[image][1]}"
            )
    if not found:
        raise TaskError(
            f"{path} has no label for any image of {listing.folder}: line {rows[0].line} is about "
            f"{strange[0]!r}, the first image is {listing.images[0].name!r}; {EXPECTED}"
        )
    samples = tuple((image, found[image][0]) for image in listing.images if image in found)
    bare = [image.name for image in listing.images if image not in found]
    losses = (
        Loss(
            f"images in {listing.folder.name}",
            len(listing.images),
            _kind("no label for", bare, path),
        ),
        Loss(f"labels in {path.name}", len(rows), _kind("no image for", strange, path)),
    )
    note = _note(path, rows, labels, f"by file name{header}")
    return GroundTruth(samples, labels, note, losses)


def _kind(reason: str, names: list[str], path: Path) -> dict[str, list[str]]:
    return {f"{reason} in {path.name}": names} if names else {}


def _note(path: Path, rows: Sequence[Row], labels: Labels, how: str) -> str:
    return f"{len(rows)} labels in {printable(path.name)} {how}, {labels.form}"


class _Images:
    """Images by their names, with or without suffix."""

    def __init__(self, images: Sequence[Path]) -> None:
        self._names = {image.name: image for image in images}
        self._stems: dict[str, Path | None] = {}
        for image in images:
            self._stems[image.stem] = None if image.stem in self._stems else image

    def find(self, name: str) -> Path | None:
        """The image that a name in a list means: folders before it, and its suffix, do not count."""
        base = name.replace("\\", "/").rsplit("/", 1)[-1]
        if base in self._names:
            return self._names[base]
        path = PurePosixPath(base)
        return self._stems.get(path.stem if path.suffix.lower() in EXTENSIONS else base)


def _is_header(row: Row, images: _Images, class_map: Mapping[str, int] | None) -> bool:
    """Whether the first line says what the columns are: neither an image nor a label stands there."""
    known = form_of(row.label, class_map) is not None or any(c.isdigit() for c in row.label)
    return not known and (row.name is None or images.find(row.name) is None)


def _is_of_foreign_file(row: Row) -> bool:
    """Whether a script listed along with the images what belongs to no data set (``__MACOSX/._x.JPEG``)."""
    if row.name is None:
        return False
    parts = [part for part in row.name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return any(is_foreign(part) for part in [*parts, row.label])


def _rows(path: Path) -> list[Row]:
    numbered = [
        (i, line)
        for i, line in enumerate(read_lines(path, "ground-truth file"), start=1)
        if line and not line.startswith("#")
    ]
    separator = next((s for s in "\t,;" if numbered and s in numbered[0][1]), None)
    rows = [_row(path, number, line, separator) for number, line in numbered]
    for row in rows:
        if (row.name is None) != (rows[0].name is None):
            raise TaskError(f"{path}, line {row.line}: has other columns than line {rows[0].line}")
    return rows


def _row(path: Path, number: int, line: str, separator: str | None) -> Row:
    cells = list(_cells(re.sub(r"\s#.*", "", line), separator, f"{path}, line {number}"))
    while len(cells) > 2 and not cells[-1]:
        cells.pop()
    if len(cells) not in (1, 2) or not all(cells):
        raise TaskError(f"{path}, line {number}: {EXPECTED}, found {line[:80]!r}")
    label = _without_boxes(cells[-1], f"{path}, line {number}")
    return Row(number, cells[0] if len(cells) == 2 else None, label)


def _cells(line: str, separator: str | None, place: str) -> Iterator[str]:
    if separator is None:
        cells = line.split()
        # A class name may have blanks, a file name then has none; so has what Kaggle writes.
        rest = " ".join(cells[1:])
        spaced = PurePosixPath(cells[0]).suffix.lower() in EXTENSIONS or _BOXES.fullmatch(rest)
        yield from [cells[0], rest] if len(cells) > 2 and spaced else cells
        return
    try:
        yield from (
            cell.strip() for cell in next(csv.reader([line], delimiter=separator, strict=True))
        )
    except csv.Error as error:
        raise TaskError(f"{place}: cannot be read as a table ({error})") from error


def _without_boxes(label: str, place: str) -> str:
    """The WordNet id of Kaggle's ``n01440764 x y w h n01440764 x y w h``."""
    if not _BOXES.fullmatch(" ".join(label.split())):
        return label
    ids: list[str] = sorted(set(re.findall(r"n[0-9]{8}", label)))
    if len(ids) > 1:
        raise TaskError(f"{place}: one image, but the WordNet ids {' and '.join(ids)}")
    return ids[0]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts as people count: ``2.jpg`` before ``10.jpg``."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts]
