"""The folder of records: one JSON file per run, written so that no crash can lose or halve one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.files import remove_stale, write_atomically
from vit_ptq_bench.bench.records.outcomes import Outcomes, pack, unpack
from vit_ptq_bench.bench.records.record import DamagedRecord, Record
from vit_ptq_bench.bench.records.spec import RunSpec

RUNS = "runs"


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

    def write(self, record: Record, outcomes: Outcomes | None = None) -> Written:
        """Write a record and its per-image outcomes (bool [n]), both or neither.

        An ok record is never replaced by one with other numbers: that one is put beside it as
        ``<run id>.conflict-<k>.json``. A record that is not ok never replaces an ok one.

        Raises:
            OSError: the disk is full or not writable; nothing half-written is left.
        """
        path = self.path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent)
        packed = None if outcomes is None else pack(outcomes)
        if packed is not None:
            record = replace(record, outcomes_sha256=hashlib.sha256(packed).hexdigest())
        before = self._read(path)
        conflict = before is not None and before.ok and not _same_numbers(before, record)
        if before is not None and before.ok and not record.ok:
            return Written(path)
        if conflict:
            path = _free_conflict_path(path)
        if packed is not None:
            write_atomically(path.with_suffix(".npz"), packed)
        text = json.dumps(record.to_dict(), indent=1, sort_keys=True, allow_nan=False)
        write_atomically(path, text.encode() + b"\n")
        return Written(path, conflict)

    def read(self, run: Specified) -> Record | None:
        """Return the record of a run; None if there is none or it is damaged (see `damaged`)."""
        return self._read(self.path(run))

    def records(self) -> list[Record]:
        """Return all records in a fixed order; damaged files are listed in `damaged`."""
        self.damaged = []
        found = (self._read(path) for path in self.files())
        records = [record for record in found if record is not None]
        return sorted(records, key=lambda r: (r.spec.task.name, r.spec.model.name, r.run_id))

    def files(self) -> list[Path]:
        """Return the record files, conflicts left out, sorted."""
        return [path for path in self._json_files() if ".conflict-" not in path.name]

    def conflicts(self) -> list[Path]:
        """Return the files of records that disagree with the one of their id."""
        return [path for path in self._json_files() if ".conflict-" in path.name]

    def outcomes(self, record: Record) -> Outcomes | None:
        """Return the per-image outcomes (bool [n]); None if the file is gone or damaged."""
        path = self.path(record).with_suffix(".npz")
        if not path.is_file():
            return None
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != record.outcomes_sha256:
            return None
        return unpack(content)

    def outcomes_intact(self, record: Record) -> bool:
        """Whether the outcomes file of a record is there and undamaged."""
        return self.outcomes(record) is not None

    def _json_files(self) -> Iterator[Path]:
        for path in sorted((self.root / RUNS).glob("*/*/*.json")):
            if not path.name.startswith("."):
                yield path

    def _read(self, path: Path) -> Record | None:
        if not path.is_file():
            return None
        try:
            return Record.from_dict(json.loads(path.read_text(encoding="utf-8")), path)
        except DamagedRecord as error:
            self.damaged.append((path, str(error)))
        except ValueError as error:
            self.damaged.append((path, f"{path}: not a whole JSON file ({error})"))
        return None


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
    try:
        record = Record.from_dict(json.loads(path.read_text(encoding="utf-8")), path)
    except DamagedRecord:
        raise
    except ValueError as error:
        raise BenchError(
            f"{path}: not a whole JSON file ({error}); the run has to be repeated"
        ) from error
    return Store(path.resolve().parents[3]), record


def _safe(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _same_numbers(first: Record, second: Record) -> bool:
    return not second.ok or (
        first.metrics == second.metrics
        and first.n == second.n
        and first.outcomes_sha256 == second.outcomes_sha256
    )


def _free_conflict_path(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.stem}.conflict-{number}.json")).exists():
        number += 1
    return candidate
