"""The file of a record: its JSON text with a checksum over itself.

Files of the layouts 1 to 3 have none; of those only what their outcomes tell can be checked (`proof`).
"""

from __future__ import annotations

from pathlib import Path

from vit_ptq_bench.bench.records.layout import by_site, to_text
from vit_ptq_bench.bench.records.record import CHECKSUM, DamagedRecord, Record, checksum
from vit_ptq_bench.bench.records.strict_json import LONGEST, NotStrictJson, parse

FIRST_WITH_CHECKSUM = 4


def to_bytes(record: Record) -> bytes:
    """Return the content of a record's file."""
    data = record.to_dict()
    data |= {CHECKSUM: checksum(data)}
    return to_text(data).encode()


def from_bytes(content: bytes, source: Path | str) -> Record:
    """Inverse of `to_bytes`; reads older layouts too.

    Raises:
        DamagedRecord: no whole or no strict JSON, another checksum, or what `Record.from_dict` refuses.
    """
    try:
        data = by_site(parse(content))
    except NotStrictJson as error:
        raise DamagedRecord(f"{source}: not a whole JSON file ({error})") from error
    record = Record.from_dict(data, source)
    if CHECKSUM not in data and data["schema"] >= FIRST_WITH_CHECKSUM:
        raise DamagedRecord(f"{source}: missing: {CHECKSUM}")
    return record


def read(path: Path) -> Record:
    """Return the record of a file.

    Raises:
        DamagedRecord: it cannot be read, or see `from_bytes`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise DamagedRecord(f"{path}: cannot be read ({error.strerror or error})") from error
    return from_bytes(content, path)
