"""The leaderboard: a pure function of records; the same records give the same bytes.

It imports neither torch nor methods nor tasks, and knows no clock.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.files import write_atomically
from vit_ptq_bench.bench.records.proof import flaw
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import RUNS, Store
from vit_ptq_bench.bench.report.factorial import Factorial, factorials
from vit_ptq_bench.bench.report.factorial import to_csv as effects_csv
from vit_ptq_bench.bench.report.frame import SOURCE, to_frame
from vit_ptq_bench.bench.report.markdown import render
from vit_ptq_bench.bench.report.page.html import render_page, unpacked
from vit_ptq_bench.bench.report.tables import Evidence, Loader, Table, tables

REAL = "imagenet-sample"
"""The folder of a real model's results, to which that of miniatures points."""

MARKDOWN, CSV, PAGE = "leaderboard.md", "leaderboard.csv", "index.html"

EFFECTS = "effects.csv"
"""Of the folders whose records hold a factorial."""


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboard of a folder.

    Attributes:
        folder: with the records.
        files: file name -> text.
        findings: what is wrong with the records, a sentence each.
        records: that it is made of; those that are not borne out have no figures.
        tables: what it shows.
        factorials: among the records.
        evidence: gives what lies beside a record.
    """

    folder: Path
    files: Mapping[str, str]
    findings: tuple[str, ...]
    records: tuple[Record, ...] = ()
    tables: tuple[Table, ...] = ()
    factorials: tuple[Factorial, ...] = ()
    evidence: Loader = field(default=lambda record: Evidence(), compare=False)

    def write(self) -> Path:
        """Write the files and return the path of the markdown file.

        Raises:
            BenchError: the folder cannot be written.
        """
        for name, text in self.files.items():
            try:
                write_atomically(self.folder / name, text.encode())
            except OSError as error:
                raise BenchError(f"cannot write {self.folder / name}: {error.strerror}") from error
        return self.folder / MARKDOWN

    def stale(self) -> list[Path]:
        """Return the files of the folder that are not what its records give."""
        paths = {self.folder / name: text for name, text in self.files.items()}
        return [path for path, text in paths.items() if not _is(path, text)]

    def all_findings(self) -> tuple[str, ...]:
        """Return the findings, and what the files of the folder tell that the records do not."""
        return self.findings + tuple(
            f"{run_id} has other numbers than the leaderboard had"
            for run_id in self.changed_numbers()
        )

    def changed_numbers(self) -> list[str]:
        """Return the ids of ok runs whose figures are others than in the folder's CSV file, sorted.

        A record that was copied over another one with its outcomes is as good as any; only what was written
        before tells.
        """
        before = figures(_content(self.folder / CSV) or b"")
        after = figures(self.files[CSV].encode())
        return sorted(run for run, value in before.items() if run in after and after[run] != value)


def figures(csv_text: bytes) -> dict[str, tuple[str, str]]:
    """Return run id -> (value, n) of the ok runs in a CSV file of the leaderboard; nothing of other files."""
    try:
        frame = pd.read_csv(io.BytesIO(csv_text), dtype=str, keep_default_na=False)
        ok = frame[frame["status"] == "ok"]
        columns = zip(ok["run_id"], ok["value"], ok["n"], strict=True)
        return {run: (value, n) for run, value, n in columns}
    except (KeyError, ValueError):  # not ours, or damaged: it is made anew
        return {}


def _is(path: Path, text: str) -> bool:
    """Whether a file has a text; of a page, unpacked."""
    content = _content(path)
    if content is None or path.name != PAGE or content == text.encode():
        return content == text.encode()
    return unpacked(content.decode(errors="replace")) == unpacked(text)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def write_leaderboard(folder: Path) -> Path:
    """Write the leaderboard of the records in ``folder``.

    That is ``leaderboard.md``, ``leaderboard.csv`` and, if they hold a factorial, ``effects.csv``.

    Returns the path of the markdown file.

    Raises:
        BenchError: there is no such folder, or it cannot be written.
    """
    return make_leaderboard(folder).write()


def make_leaderboard(folder: Path) -> Leaderboard:
    """Return the leaderboard of the records in ``folder``; of none, one that says so.

    Raises:
        BenchError: there is no such folder.
    """
    folder = Path(folder)
    store = Store(folder)
    records, findings = judged(store)
    found = factorials(records, store.outcomes)
    evidence = evidence_of(store)
    ranked = tables(records, evidence)
    beside = REAL if (folder / REAL / RUNS).is_dir() else ""
    files = {
        MARKDOWN: render(records, ranked, findings, found, beside),
        CSV: to_csv(records, ranked),
        PAGE: render_page(records, ranked, findings, found, beside),
    }
    if found:
        files[EFFECTS] = effects_csv(found)
    return Leaderboard(
        folder, files, tuple(findings), tuple(records), tuple(ranked), tuple(found), evidence
    )


def evidence_of(store: Store) -> Loader:
    """Return what gives the evidence that lies beside a record of ``store``."""
    return lambda record: Evidence(store.outcomes(record), store.replicates(record))


def judged(store: Store) -> tuple[list[Record], list[str]]:
    """Return the records of a folder, and what is wrong with them, a sentence each.

    Those that are not borne out are without figures.

    Raises:
        BenchError: there is no such folder.
    """
    records = store.records()
    if not store.root.is_dir():
        raise BenchError(f"there is no folder {store.root}")
    findings = [f"damaged, counts as missing: {error}" for _, error in store.damaged]
    if not records and not findings:
        findings.append("no records (looked for runs/<task>/<model>/<run id>.json)")
    findings += [
        f"other numbers under the same run id: {path}" for path in sorted(store.conflicts())
    ]
    found = []
    for record in records:
        wrong = flaw(record, store) if record.ok else None
        if wrong is not None:
            findings.append(f"not ranked: {store.path(record)}: {wrong}")
            record = unproven(record, wrong)
        found.append(record)
    return found, [text.replace(f"{store.root}{os.sep}", "") for text in findings]


def unproven(record: Record, why: str) -> Record:
    """Return an ok record as one without figures: what its outcomes do not bear out gets no rank."""
    return replace(
        record,
        status="damaged",
        error={"type": "Finding", "message": why},
        metrics={},
        intervals={},
        standard_errors={},
    )


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula."""


def harmless(value: object) -> object:
    """Return a cell that a spreadsheet shows as it is: a text that it would compute gets a ``'`` before."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # a row would end there
    return f"'{text}" if value.startswith(FORMULA) else text


def to_csv(records: Sequence[Record], found: Sequence[Table] = ()) -> str:
    """Return one row per record; the source of calibration images only where not all are training images.

    Args:
        records: in any order.
        found: their tables: each record has the mean of its row over seeds, the mean's 95 % interval, and why
            the row does not compare with others.
    """
    if not records:
        return ""
    buffer = io.StringIO()
    frame = to_frame(records)
    if not frame[SOURCE].any():
        frame = frame.drop(columns=SOURCE)
    frame = frame.join(_of_rows(found), on="run_id")
    frame.map(harmless).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _of_rows(found: Sequence[Table]) -> pd.DataFrame:
    """What the row of a run says of all its seeds, by run id."""
    told = {
        run.run_id: (
            row.value,
            *(row.interval or (None, None)),
            " ".join(row.classes),
        )
        for table in found
        for row in (*filter(None, [table.reference]), *table.rows)
        for run in row.runs
    }
    columns = ["mean", "mean_low", "mean_high", "classes"]
    return pd.DataFrame.from_dict(told, orient="index", columns=columns)
