"""The leaderboard: a pure function of records; the same records give the same bytes.

It imports neither torch nor methods nor tasks, and knows no clock.
"""

from __future__ import annotations

import io
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.frame import to_frame
from vit_ptq_bench.bench.report.markdown import render

MARKDOWN, CSV = "leaderboard.md", "leaderboard.csv"


def write_leaderboard(folder: Path) -> Path:
    """Write ``leaderboard.md`` and ``leaderboard.csv`` of the records in ``folder``.

    Returns the path of the markdown file.

    Raises:
        BenchError: the folder holds no record, or cannot be written.
    """
    for name, text in contents(Path(folder)).items():
        try:
            (Path(folder) / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise BenchError(f"cannot write {Path(folder) / name}: {error.strerror}") from error
    return Path(folder) / MARKDOWN


def stale_files(folder: Path) -> list[Path]:
    """Return the leaderboard files of ``folder`` that are not what its records give."""
    stale = []
    for name, text in contents(Path(folder)).items():
        path = Path(folder) / name
        if not path.is_file() or path.read_bytes() != text.encode():
            stale.append(path)
    return stale


def contents(folder: Path) -> dict[str, str]:
    """Return file name -> text of the leaderboard files.

    Raises:
        BenchError: the folder holds no record.
    """
    store = Store(folder)
    records = store.records()
    if not records and not store.damaged:
        raise BenchError(
            f"{folder} holds no records (looked for runs/<task>/<model>/<run id>.json)"
        )
    findings = [f"damaged, counts as missing: {error}" for _, error in store.damaged]
    findings += [
        f"other numbers under the same run id: {path.relative_to(folder).as_posix()}"
        for path in store.conflicts()
    ]
    markdown = render(
        records, store.outcomes, [text.replace(f"{folder}/", "") for text in findings]
    )
    return {MARKDOWN: markdown, CSV: to_csv(records)}


def to_csv(records: list[Record]) -> str:
    """Return one row per record."""
    if not records:
        return ""
    buffer = io.StringIO()
    to_frame(records).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()
