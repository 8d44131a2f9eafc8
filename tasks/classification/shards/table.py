"""Rows of parquet shards: labels of all of them, and the bytes of one image after the other.

Images are never read but one small batch of rows after the other. In memory lies what a writer has put into
one page, which is a row group at most and never a shard of several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.tasks.errors import TaskError

IMAGE, LABEL = "image", "label"

BATCH = 8
"""Rows that are in memory at a time."""

POINTER = b"version https://git-lfs"
"""What a clone without Git LFS holds in the place of a large file."""


@dataclass(frozen=True, slots=True, order=True)
class ShardRow:
    """An image in a shard.

    Attributes:
        file: the shard.
        number: of its row, from 0.
    """

    file: Path
    number: int

    def read(self) -> bytes:
        """Return the bytes of the image file that the row holds.

        Raises:
            TaskError: the shard cannot be read, or the row holds no image.
        """
        content = _READER.content(self.file, self.number)
        if content is None:
            raise TaskError(
                f"{self}: holds no bytes of an image; shards that only name image files cannot be read, "
                "write them with the images in them"
            )
        return content

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}"


@dataclass(frozen=True)
class Rows:
    """All that a shard says but its images.

    Attributes:
        labels: int64 [n].
        names: of the image files, without folders; None where one has none.
        classes: names of the classes in the order of their labels; None: the metadata do not tell.
    """

    labels: NDArray[np.int64]
    names: list[str] | None
    classes: tuple[str, ...] | None


def read_rows(file: Path) -> Rows:
    """Return labels, names and classes of a shard.

    Raises:
        TaskError: it is damaged, lacks a column, or a label is no whole number; with shard and row.
    """
    with _told(file):
        shard = _open(file)
        _require_columns(file, shard.schema_arrow)
        columns = [LABEL, f"{IMAGE}.path"]
        table = shard.read(columns=columns, use_threads=False)
        labels = table.column(LABEL)
        if labels.null_count:
            row = labels.to_pylist().index(None)
            raise TaskError(f"{file}, row {row}: has no label")
        paths = table.column(IMAGE).combine_chunks().field("path").to_pylist()
        values = labels.to_numpy().astype(np.int64)
    names = (
        None if None in paths else [path.replace("\\", "/").rpartition("/")[2] for path in paths]
    )
    return Rows(values, names, _classes(shard.schema_arrow.metadata or {}))


def _require_columns(file: Path, schema: Any) -> None:
    import pyarrow.types as kinds

    there = ", ".join(schema.names) or "none"
    for name in (IMAGE, LABEL):
        if name not in schema.names:
            raise TaskError(f"{file}: has no column {name!r}; its columns are {there}")
    image = schema.field(IMAGE).type
    fields = (
        [image.field(i).name for i in range(image.num_fields)] if kinds.is_struct(image) else []
    )
    if not {"bytes", "path"} <= set(fields):
        raise TaskError(f"{file}: the column {IMAGE!r} is {image}, not a struct of bytes and path")
    label = schema.field(LABEL).type
    if not kinds.is_integer(label):
        raise TaskError(f"{file}: the column {LABEL!r} is {label}; labels are whole numbers")


def _classes(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """The class names that the library `datasets` writes beside a table."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[LABEL]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):  # others write tables too
        return None
    told = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if told else None


class _Reader:
    """Goes through the rows of one shard at a time; a later row of a row group is found by going on."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._at: tuple[object, ...] = ()
        self._shard: Any = None
        self._starts: list[int] = []
        self._batches: Iterator[Any] = iter(())
        self._group = -1
        self._first = 0  # of the rows of `_values`
        self._values: list[bytes | None] = []

    def content(self, file: Path, row: int) -> bytes | None:
        """Return the bytes in a row; None: it has none."""
        with self._lock, _told(file):
            state = file.stat()
            # A forked process shares no position in a file, and a file may be replaced while it is open.
            at = (os.getpid(), file, state.st_ino, state.st_size, state.st_mtime_ns)
            if self._at != at:
                self._open(file)
                self._at = at
            self._seek(row)
            return self._values[row - self._first]

    def _open(self, file: Path) -> None:
        self._at, self._group, self._values = (), -1, []
        self._shard = _open(file)
        about = self._shard.metadata
        sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]

    def _seek(self, row: int) -> None:
        """Read on to a row, or begin with its row group."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._first:
            self._batches = self._shard.iter_batches(
                BATCH, row_groups=[group], columns=[f"{IMAGE}.bytes"], use_threads=False
            )
            self._group, self._first, self._values = group, self._starts[group], []
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            self._values = []  # before the next ones are read
            batch = next(self._batches)
            self._values = batch.column(IMAGE).field("bytes").to_pylist()


_READER = _Reader()


def _open(file: Path) -> Any:
    """The shard, of which nothing but the footer is read."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise TaskError(
            f"{file}: parquet shards need an extra: pip install -c constraints.txt -e '.[parquet]' ({error})"
        ) from error
    with file.open("rb") as start:
        if start.read(len(POINTER)) == POINTER:
            raise TaskError(
                f"{file}: is a pointer of Git LFS and not the file: fetch it with `git lfs pull`"
            )
    # Without a buffer of its own a row group would be read at once.
    return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Say of which shard an error of pyarrow is, all of which are `ValueError` or `OSError` or their like."""
    try:
        yield
    except TaskError:
        raise
    except (
        OSError,
        ValueError,
        ArithmeticError,
        LookupError,
        StopIteration,
        RuntimeError,
    ) as error:
        fault = " ".join(str(error).split())[:160] or type(error).__name__
        raise TaskError(
            f"{file}: cannot be read as parquet ({fault}); it is truncated or damaged, fetch it again"
        ) from error
