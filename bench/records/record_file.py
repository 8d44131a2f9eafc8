"""The file of a record: its JSON text with a checksum over itself.

Files of the layouts 1 to 3 have none; of those only what their outcomes tell can be checked (`proof`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.records.record import DamagedRecord, Record
from vit_ptq_bench.bench.records.spec import canonical_json
from vit_ptq_bench.bench.records.strict_json import LONGEST, NotStrictJson, parse

CHECKSUM = "checksum"
FIRST_WITH_CHECKSUM = 4


def to_bytes(record: Record) -> bytes:
    """Return the content of a record's file."""
    data = record.to_dict()
    data[CHECKSUM] = checksum(data)
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def checksum(data: dict[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of a record's data, the checksum left out."""
    rest = {key: value for key, value in data.items() if key != CHECKSUM}
    return f"sha256:{hashlib.sha256(canonical_json(rest).encode()).hexdigest()}"


def from_bytes(content: bytes, source: Path | str) -> Record:
    """Inverse of `to_bytes`; reads older layouts too.

    Raises:
        DamagedRecord: no whole or no strict JSON, another checksum, or what `Record.from_dict` refuses.
    """
    try:
        data = parse(content)
    except NotStrictJson as error:
        raise DamagedRecord(f"{source}: not a whole JSON file ({error})") from error
    if not isinstance(data, dict) or _is_older(data):
        return Record.from_dict(data, source)
    record = Record.from_dict({key: data[key] for key in data if key != CHECKSUM}, source)
    _verify(data, source)  # last: what else is wrong says more
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


def _is_older(data: dict[str, Any]) -> bool:
    version = data.get("schema")
    return type(version) is int and version < FIRST_WITH_CHECKSUM


def _verify(data: dict[str, Any], source: Path | str) -> None:
    found, expected = data.get(CHECKSUM), checksum(data)
    if found is None:
        raise DamagedRecord(f"{source}: missing: {CHECKSUM}")
    if found != expected:
        raise DamagedRecord(
            f"{source}: its checksum is not that of its content: the file was edited or damaged"
        )
