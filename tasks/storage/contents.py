"""Contents of files and of pieces of files: hashes, kept between processes, held against what is read later.

A hash is computed once for a path, size and times of last change; images of a large data set are hashed when
they are first met, and from then on only asked for their times.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.kept import private_folder

READERS = 4
"""Threads that hash at a time: enough to keep a disk busy."""

BATCH = 4096
"""Files whose hashes are kept together, so that a stop loses little."""

SETTLED_SECONDS = 0.1
"""Age from which a file's times tell its next change; they advance in steps of some milliseconds."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS contents "
    "(path TEXT PRIMARY KEY, state TEXT NOT NULL, digest TEXT NOT NULL)"
)


class FilePart(Protocol):
    """A piece of a file that holds many, like a row of a table; as text it names file and piece."""

    @property
    def file(self) -> Path:
        """The file, or folder, whose size and times change where the piece does."""

    @property
    def number(self) -> int:
        """Of the piece among those of the file, from 0."""

    def read(self) -> bytes:
        """Return the bytes of the piece.

        Raises:
            TaskError: they cannot be read.
        """


Stored = Path | FilePart
"""What holds the bytes of one image: a file, or a piece of one."""


def content_ids(paths: Sequence[Stored]) -> list[str]:
    """Return the SHA-256 (64 hexadecimal digits) of the bytes of each file, or piece of a file.

    Raises:
        TaskError: a file is gone or cannot be read.
    """
    ids: list[str] = []
    for start in range(0, len(paths), BATCH):
        ids += _batch_ids(paths[start : start + BATCH])
    return ids


def read_content(path: Stored, digest: str | None) -> bytes:
    """Return the bytes of a file, or piece of one, whose content is known; ``digest`` None: as it is now.

    Raises:
        TaskError: it cannot be read, or holds other bytes than those that ``digest`` was made from.
    """
    content = _bytes_of(path)
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise TaskError(
            f"{path} was changed while the sweep ran: its bytes are not those that the run is about; "
            "give the same command again, so that the data are looked at anew"
        )
    return content


def _bytes_of(path: Stored) -> bytes:
    if not isinstance(path, Path):
        return path.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _name(path: Stored) -> str:
    """What hashes are kept under; bytes of another encoding in a name are no text that a database takes."""
    whole = str(_file(path).absolute()) + ("" if isinstance(path, Path) else f"#{path.number}")
    return whole.encode("utf-8", "backslashreplace").decode()


def _file(path: Stored) -> Path:
    return path if isinstance(path, Path) else path.file


def _batch_ids(paths: Sequence[Stored]) -> list[str]:
    states = [_state(_file(path)) for path in paths]
    names = [_name(path) for path in paths]
    with _database() as database:
        known = _known(database, names, states)
        missing = [i for i, name in enumerate(names) if name not in known]
        with ThreadPoolExecutor(READERS) as pool:
            digests = pool.map(_hash, (paths[i] for i in missing))
            fresh = {names[i]: digest for i, digest in zip(missing, digests, strict=True)}
        # A file that changes while it is hashed keeps its older state here, and is hashed again next time.
        settled = [i for i in missing if _is_settled(_file(paths[i]))]
        _keep(database, [(names[i], states[i], fresh[names[i]]) for i in settled])
    return [known.get(name) or fresh[name] for name in names]


def _hash(path: Stored) -> str:
    if not isinstance(path, Path):
        return hashlib.sha256(path.read()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _state(path: Path) -> str:
    """What changes when a file's bytes do; the time of its last status change also tells a restored time."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _is_settled(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_ctime > SETTLED_SECONDS
    except FileNotFoundError:
        return False


def _unreadable(path: Path, error: OSError) -> TaskError:
    return TaskError(f"{path}: cannot be read ({error.strerror or error})")


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection | None]:
    """The kept hashes; None where nothing can be kept. A damaged file is begun anew."""
    connection = _connect()
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def _connect() -> sqlite3.Connection | None:
    try:
        path = private_folder("kept") / "contents.sqlite"
    except (OSError, TaskError):
        return None
    for _ in range(2):
        try:
            connection = sqlite3.connect(path, timeout=30.0)
            connection.execute(_TABLE)
        except sqlite3.OperationalError:  # locked for long, or no room
            return None
        except sqlite3.DatabaseError:  # no database: damaged
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            continue
        return connection
    return None


def _known(
    database: sqlite3.Connection | None, names: Sequence[str], states: Sequence[str]
) -> dict[str, str]:
    """Kept hashes of the files that are as they were then."""
    if database is None:
        return {}
    known = {}
    with contextlib.suppress(sqlite3.DatabaseError):
        for name, state in zip(names, states, strict=True):
            row = database.execute(
                "SELECT digest FROM contents WHERE path = ? AND state = ?", (name, state)
            ).fetchone()
            if row is not None:
                known[name] = str(row[0])
    return known


def _keep(database: sqlite3.Connection | None, rows: Sequence[tuple[str, str, str]]) -> None:
    """Keep hashes for later processes; one that cannot costs them time, and this one nothing."""
    if database is None or not rows:
        return
    with contextlib.suppress(sqlite3.DatabaseError), database:
        database.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", rows)
