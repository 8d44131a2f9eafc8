"""Single flipped bits in what a sweep has left: records, per-image outcomes, saved models.

A flip is good if `bench leaderboard --check` names it, or if every figure is as it was; with a finding no
figure may differ either, and the other records keep theirs. A saved model is evaluated.
"""

from __future__ import annotations

import csv
import io
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.faults.command import Said, bench
from tests.faults.mutations import flipped
from tests.faults.sweeps import ROOT, finished_sweep
from tests.faults.trials import Kind, Outcome, faulty
from vit_ptq_bench.bench.report import leaderboard
from vit_ptq_bench.bench.report.leaderboard import Leaderboard, make_leaderboard

CONTROLS = 101
"""Every so many trials nothing is changed, and nothing may be found."""

SOME = 20
"""Images that a saved model is judged on."""


@dataclass
class Results:
    """A folder of results and what it said before any fault.

    Attributes:
        folder: where faults are caused, one at a time.
        files: those to damage.
        tables: its leaderboard files.
        evaluations: what `bench evaluate` said of each saved model.
    """

    folder: Path
    files: list[Path]
    tables: Mapping[str, str]
    evaluations: dict[Path, Said]


def read_results(folder: Path, *patterns: str) -> Results:
    """The results in ``folder`` with those files of it that match the patterns."""
    board = make_leaderboard(folder)
    board.write()
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    assert files, f"nothing in {folder} matches {patterns}"
    said, _ = check(folder)
    assert said.status == 0, said.error
    return Results(folder, files, dict(board.files), {})


def check(folder: Path) -> tuple[Said, Mapping[str, str]]:
    """``bench leaderboard --check``, and the tables that it looked at."""
    made = []

    def noted(place: Path) -> Leaderboard:
        made.append(make_leaderboard(place))
        return made[-1]

    with mock.patch.object(leaderboard, "make_leaderboard", noted):
        said = bench(["leaderboard", "--check", "--results", str(folder)])
    return said, made[-1].files


def judge_results(results: Results, path: Path, data: bytes, fault: str) -> Outcome:
    """What the tables say with ``data`` in the place of a file, which is put back afterwards."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        with faulty(fault):
            said, tables = check(results.folder)
    finally:
        path.write_bytes(whole)
    if said.status == 0:
        same = tables == results.tables
        return Outcome(
            "right" if same else "silent", f"{fault}: other tables, and the check passes"
        )
    before, after = _rows(results.tables), _rows(tables)
    lost = [run for run in before.keys() - after.keys() if run not in path.name]
    other = [run for run, row in after.items() if row["value"] and row != before.get(run)]
    if lost:
        return Outcome("lost", f"{fault}: the rows of {lost} are gone")
    if other:
        return Outcome("silent", f"{fault}: other figures of {other} stand in the table")
    if not said.error.strip() or path.stem not in said.error + tables["leaderboard.md"]:
        return Outcome("silent", f"{fault}: the check fails and does not name {path.name}")
    return Outcome("refused", f"{fault}: {said.error}")


def _rows(tables: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The rows of the CSV file by run id."""
    return {row["run_id"]: row for row in csv.DictReader(io.StringIO(tables["leaderboard.csv"]))}


def prepare(folder: Path) -> Results:
    """A copy of a finished sweep."""
    shutil.copytree(finished_sweep(folder.parent / "sweep"), folder / "results")
    results = read_results(folder / "results", "runs/*/*/*.json", "runs/*/*/*.npz")
    models = sorted((folder / "results").glob("models/*/*/*.safetensors"))[:2]
    results.evaluations = {path: evaluate(path) for path in models}
    wrong = [said.error for said in results.evaluations.values() if said.status]
    assert models and not wrong, wrong
    return results


def evaluate(path: Path) -> Said:
    """``bench evaluate`` of a saved model."""
    return bench(["evaluate", str(path), "--limit", str(SOME)])


def trial(results: Results, number: int, rng: random.Random) -> Outcome:
    """Of four flips two are in records, one in outcomes, one in a saved model."""
    if number % CONTROLS == 0:
        path = rng.choice(results.files)
        outcome = judge_results(results, path, path.read_bytes(), "no fault")
        wrong = Outcome("silent", f"found without a fault: {outcome.text}")
        return outcome if outcome.verdict == "right" else wrong
    kind = (".json", ".npz", ".json", ".safetensors")[number % 4]
    if kind == ".safetensors":
        path = rng.choice(list(results.evaluations))
        return _judge_model(results, path, *_flip(path, rng))
    path = rng.choice([path for path in results.files if path.suffix == kind])
    return judge_results(results, path, *_flip(path, rng))


def _flip(path: Path, rng: random.Random) -> tuple[bytes, str]:
    data = path.read_bytes()
    bit = rng.randrange(8 * len(data))
    around = data[max(0, bit // 8 - 12) : bit // 8 + 12] if path.suffix == ".json" else b""
    return flipped(data, bit), f"bit {bit % 8} of byte {bit // 8} of {path.name} {around!r}"


def _judge_model(results: Results, path: Path, data: bytes, fault: str) -> Outcome:
    before, whole = results.evaluations[path], path.read_bytes()
    path.write_bytes(data)
    try:
        with faulty(fault):
            said = evaluate(path)
    finally:
        path.write_bytes(whole)
    if said.status == 0:
        same = said.out == before.out
        return Outcome("right" if same else "silent", f"{fault}: {said.out.strip()[-60:]}")
    return Outcome("refused" if said.error.strip() else "traceback", f"{fault}: {said.error}")


def prepare_old(folder: Path) -> Results:
    """A record of an older layout, which holds no checksum, among some of the present one."""
    shutil.copytree(ROOT / "tests" / "bench" / "records" / "schema_2", folder / "results")
    [old] = (folder / "results").glob("runs/*/*/*.json")
    others = sorted((ROOT / "results" / old.parent.relative_to(folder / "results")).glob("*.json"))
    for path in [path for path in others if path.name != old.name][:3]:
        for name in (path.name, path.with_suffix(".npz").name):
            shutil.copy(path.parent / name, old.parent / name)
    return read_results(folder / "results", f"runs/*/*/{old.stem}.*")


def trial_old(results: Results, number: int, rng: random.Random) -> Outcome:
    """Other figures that nothing in such a record gives away are not to be known: only its writer could."""
    path = rng.choice(results.files)
    outcome = judge_results(results, path, *_flip(path, rng))
    silent = outcome.verdict == "silent" and path.suffix == ".json"
    return Outcome("unknowable", outcome.text) if silent else outcome


KINDS = [
    Kind("flips", "flipped bits in records, outcomes and saved models", 2020, prepare, trial),
    Kind(
        "old-flips",
        "flipped bits in records of schema 2, without a checksum, and in their outcomes",
        500,
        prepare_old,
        trial_old,
    ),
]
