"""The folder of records: one JSON file per run, written so that no crash can lose or halve one."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Protocol

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.files import remove_stale, write_atomically, write_new
from vit_ptq_bench.bench.records.outcomes import (
    DamagedOutcomes,
    Outcomes,
    Replicates,
    pack,
    unpack,
    unpack_replicates,
)
from vit_ptq_bench.bench.records.record import DamagedRecord, Record
from vit_ptq_bench.bench.records.record_file import read, to_bytes
from vit_ptq_bench.bench.records.spec import RunSpec

RUNS, MODELS = "runs", "models"


class Specified(Protocol):
    """Anything that has a specification: a planned run or a record."""

    @property
    def spec(self) -> RunSpec:
        """Everything that decides the result."""
        ...


@dataclass(frozen=True)
class Written:
    """Where a record went.

    Attributes:
        path: the file.
        conflict: the record has other numbers than the ok one of the same id, which was kept.
    """

    path: Path
    conflict: bool = False


class Store:
    """Records under ``root``; any number of processes may write at once.

    Attributes:
        root: the folder.
        damaged: (file, what is wrong) of unreadable files met by the last `records` or `read`.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.damaged: list[tuple[Path, str]] = []

    def path(self, run: Specified) -> Path:
        """Return the file of a run: ``runs/<task>/<model>/<run id>.json``."""
        task, model = _safe(run.spec.task.name), _safe(run.spec.model.name)
        return self.root / RUNS / task / model / f"{run.spec.run_id}.json"

    def model_path(self, run: Specified) -> Path:
        """Return where a run keeps its quantized model, which is called as its record is."""
        # A model may be a path, which names no folder beneath this one.
        record = self.path(run).relative_to(self.root / RUNS)
        return self.root / MODELS / record.with_suffix(".safetensors")

    def write(
        self,
        record: Record,
        outcomes: Outcomes | None = None,
        replicates: Replicates | None = None,
    ) -> Written:
        """Write a record and its per-image outcomes (bool [n]) with replicates ([R]), both or neither.

        An ok record is never replaced by one with other numbers: that one is put beside it as
        ``<run id>.conflict-<k>.json``. A record that is not ok never replaces an ok one.

        Raises:
            OSError: the disk is full or not writable; nothing half-written is left.
        """
        folder = self.path(record).parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)
        if outcomes is not None:
            packed = pack(outcomes, replicates)
            record = replace(record, outcomes_sha256=_sha256(packed))
            self._write_outcomes(record, packed)
        return self._write_record(record)

    def _write_outcomes(self, record: Record, packed: bytes) -> None:
        """Under the plain name, unless other outcomes have it; then under one that tells the content."""
        path = self.path(record).with_suffix(".npz")
        if not write_new(path, packed) and path.read_bytes() != packed:
            write_atomically(self._named_by_content(record), packed)

    def _named_by_content(self, record: Record) -> Path:
        return self.path(record).with_suffix(f".{(record.outcomes_sha256 or '')[:16]}.npz")

    def _write_record(self, record: Record) -> Written:
        """Without a lock: on a network folder there may be none."""
        path, content = self.path(record), to_bytes(record)
        while not write_new(path, content):
            before = self._read(path)
            if before is None or not before.ok:
                self._clear(path)
            elif not record.ok:
                return Written(path)
            elif self._same_numbers(before, record):
                write_atomically(path, content)  # other labels or notes; no number can be lost
                break
            else:
                return Written(_write_conflict(path, content), conflict=True)
        return Written(path)

    def _same_numbers(self, before: Record, record: Record) -> bool:
        if not record.ok:
            return True
        if before.metrics != record.metrics or before.n != record.n:
            return False
        if before.outcomes_sha256 == record.outcomes_sha256:
            return True
        outcomes = self.outcomes(record)  # an older archive holds nothing else
        return outcomes is not None and before.outcomes_sha256 == _sha256(pack(outcomes))

    def _clear(self, path: Path) -> None:
        """Take a record that is not ok, or is damaged, out of the way.

        Another process may just have put an ok one in its place: it comes back, or is kept as a conflict,
        also if this process ends here.
        """
        aside = path.with_name(f"{path.stem}.conflict-{uuid.uuid4().hex}.json")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        moved = self._read(aside)
        if moved is not None and moved.ok and not write_new(path, aside.read_bytes()):
            _write_conflict(path, aside.read_bytes())
        aside.unlink()

    def read(self, run: Specified) -> Record | None:
        """Return the record of a run; None if there is none or it is damaged (see `damaged`)."""
        return self._read(self.path(run))

    def records(self, tasks: Collection[str] | None = None) -> list[Record]:
        """Return all records in a fixed order.

        What is damaged, or stands where no record of its id belongs, is left out and listed in `damaged`.

        Args:
            tasks: names of tasks, to read their records alone; None: all.
        """
        self.damaged = []
        records = []
        folders = None if tasks is None else {_safe(task) for task in tasks}
        for path in self.files():
            if folders is not None and path.parent.parent.name not in folders:
                continue
            record = self._read(path)
            if record is not None and self._belongs(record, path):
                records.append(record)
        self.damaged += [(path, f"{path}: no record belongs here") for path in self._strays()]
        return sorted(records, key=lambda r: (r.spec.task.name, r.spec.model.name, r.run_id))

    def files(self) -> list[Path]:
        """Return the record files, conflicts left out, sorted."""
        return [path for path in self._json_files() if ".conflict-" not in path.name]

    def conflicts(self) -> list[Path]:
        """Return the files of records that disagree with the one of their id."""
        found = [path for path in self._json_files() if ".conflict-" in path.name]
        return [path for path in found if _has_numbers(path)]

    def outcomes(self, record: Record) -> Outcomes | None:
        """Return the per-image outcomes (bool [n]); None if the file is gone or damaged."""
        content = self._archive(record)
        return None if content is None else _unpacked(content)

    def replicates(self, record: Record) -> Replicates | None:
        """Return the first metric on drawn image sets ([R]); None: the record has none, or they are gone."""
        content = self._archive(record)
        if content is None:
            return None
        try:
            return unpack_replicates(content)
        except DamagedOutcomes:
            return None

    def _archive(self, record: Record) -> bytes | None:
        """The undamaged file beside a record."""
        plain = self.path(record).with_suffix(".npz")
        for path in (plain, self._named_by_content(record)):
            content = _bytes_of(path)
            if content and _sha256(content) == record.outcomes_sha256:
                return content
        return None

    def outcomes_intact(self, record: Record) -> bool:
        """Whether the outcomes file of a record is there and undamaged."""
        return self.outcomes(record) is not None

    def _json_files(self) -> Iterator[Path]:
        for path in sorted((self.root / RUNS).glob("*/*/*.json")):
            if not path.name.startswith("."):
                yield path

    def _strays(self) -> Iterator[Path]:
        """JSON files in other depths than records have."""
        runs = self.root / RUNS
        for folder, _, names in os.walk(runs):
            depth = len(Path(folder).relative_to(runs).parts)
            if depth != 2:
                yield from sorted(
                    Path(folder) / name
                    for name in names
                    if name.endswith(".json") and not name.startswith(".")
                )

    def _belongs(self, record: Record, path: Path) -> bool:
        """Whether a record's file has the name and the folders of its id; a copy has another."""
        home = self.path(record)
        if path == home:
            return True
        self.damaged.append(
            (path, f"{path}: is a copy of another record: its id belongs at {home}")
        )
        return False

    def _read(self, path: Path) -> Record | None:
        if not os.path.lexists(path):
            return None
        try:
            return read(path)
        except DamagedRecord as error:
            self.damaged.append((path, str(error)))
        return None


def folders_of_records(root: Path) -> list[Path]:
    """Return the folders of records that are ``root`` or lie in it, in order."""
    return [folder for folder in (root, *sorted(root.glob("*/"))) if (folder / RUNS).is_dir()]


def names_record(text: str, root: Path) -> bool:
    """Return whether a user who writes this means a run: a record file, or the beginning of an id."""
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        return True
    return any(p.name.startswith(text) for p in Store(root).files())


def load_record(text: str, root: Path) -> tuple[Store, Record]:
    """Return the record that a user names, by its file or by the beginning of its id.

    Raises:
        BenchError: no such record, several, or a damaged file.
    """
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        return _from_file(path)
    store = Store(root)
    paths = [p for p in store.files() if p.name.startswith(text)]
    if not paths:
        raise BenchError(
            f"no record in {root} begins with {text!r}; `bench leaderboard` lists them"
        )
    if len(paths) > 1:
        names = ", ".join(p.stem for p in paths[:5])
        raise BenchError(f"{len(paths)} records begin with {text!r}: {names}; give more digits")
    return store, _from_file(paths[0])[1]


def _from_file(path: Path) -> tuple[Store, Record]:
    folders = path.resolve().parents
    return Store(folders[min(3, len(folders) - 1)]), read(path)


def _safe(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_conflict(path: Path, content: bytes) -> Path:
    """Put a record with other numbers beside the one at ``path``, once; return its file."""
    numbers = count(1)
    while True:
        candidate = path.with_name(f"{path.stem}.conflict-{next(numbers)}.json")
        if write_new(candidate, content) or candidate.read_bytes() == content:
            return candidate


def _has_numbers(path: Path) -> bool:
    """Whether a file may hold results: a writer that was killed can leave a record that is not ok aside."""
    try:
        return read(path).ok
    except DamagedRecord:
        return True


def _unpacked(content: bytes) -> Outcomes | None:
    try:
        return unpack(content)
    except DamagedOutcomes:  # the record names an archive of other things
        return None


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # missing, or not to be read: one file stops no others
        return None
