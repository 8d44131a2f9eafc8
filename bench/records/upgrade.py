"""Records of older layouts written in the present one, which has checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.files import cannot_write, write_atomically
from vit_ptq_bench.bench.records.proof import flaw
from vit_ptq_bench.bench.records.record_file import to_bytes
from vit_ptq_bench.bench.records.store import Store


@dataclass(frozen=True)
class Upgrade:
    """What became of a folder of records.

    Attributes:
        written: how many files were written anew.
        present: how many were in the present layout.
        left: (file, why) of those that were left as they are, for something speaks against them.
    """

    written: int
    present: int
    left: tuple[tuple[Path, str], ...]


def upgrade(folder: Path) -> Upgrade:
    """Write every record of ``folder`` in the present layout; ids, figures and outcomes stay.

    Nothing that is damaged, or not borne out by its outcomes, gets a checksum.

    Raises:
        BenchError: the folder holds no record, or cannot be written.
    """
    store = Store(folder)
    records = store.records()
    left = list(store.damaged)
    if not records and not left:
        raise BenchError(f"{folder} holds no records")
    written = present = 0
    for record in records:
        path, content = store.path(record), to_bytes(record)
        wrong = flaw(record, store) if record.ok else None
        if wrong is not None:
            left.append((path, f"{path}: {wrong}"))
        elif path.read_bytes() == content:
            present += 1
        else:
            _write(path, content)
            written += 1
    return Upgrade(written, present, tuple(left))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise cannot_write(path.parent, error.strerror or str(error)) from error
