"""A few trials of every kind of fault; ``tox -e faults`` makes thousands."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults import mutations
from tests.faults.__main__ import kinds, main
from tests.faults.company import run_companies
from tests.faults.kills import answers, run_stories
from tests.faults.sweeps import TOYS, printed_file, start
from tests.faults.trials import Kind, Outcome, Row, run_kind, table

SEED = 15
"""Another one than the full run's."""

FEW_TOYS = TOYS.replace("seeds = [0, 1, 2, 3]", "seeds = [0]")

FEW = {"flips": 12, "old-flips": 8, "cuts": 16, "suites": 60, "coco": 8, "voc": 30, "yolo": 30,
       "labels": 9, "pt": 12, "safetensors": 12, "saved": 9}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all kinds: some look at the same sweep."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("name", FEW)
def test_a_fault_is_named_or_changes_nothing(name: str, folder: Path) -> None:
    [kind] = [kind for kind in kinds([name]) if kind.name == name]
    total = kind.trials or 10_000
    row = run_kind(kind, folder / name, FEW[name] / total, SEED)
    assert row.trials >= 1 and row.bad == []


def test_killed_sweeps_lose_and_double_nothing(tmp_path: Path) -> None:
    row = run_stories(tmp_path, 3, SEED, [FEW_TOYS])
    assert row.trials == 3 and row.bad == []


def test_killed_sweeps_in_one_folder_lose_and_double_nothing(tmp_path: Path) -> None:
    row = run_companies(tmp_path, 4, SEED, [FEW_TOYS])
    assert row.trials == 4 and row.bad == []


def test_a_sweep_answers_signals_from_its_first_second(tmp_path: Path) -> None:
    """Long before it holds its folder: what it needs is still being imported."""
    suite = tmp_path / "suite.toml"
    suite.write_text(TOYS)
    process = start(suite, tmp_path / "output")
    answered, starting = answers(process.pid)
    while starting and not answered:
        time.sleep(0.01)
        answered, starting = answers(process.pid)
    assert answered
    process.terminate()
    assert process.wait(60) == 130
    assert "Traceback" not in printed_file(tmp_path / "output").read_text()


def test_every_kind_is_tried_here() -> None:
    assert {kind.name for kind in kinds([])} == {*FEW, "kills", "company"}


def test_the_full_numbers_are_those_that_are_promised() -> None:
    least = {"kills": 200, "company": 100, "flips": 2000 + 20, "suites": 2500} | dict.fromkeys(
        ("coco", "voc", "yolo", "labels", "pt", "safetensors", "saved"), 1000
    )
    trials = {kind.name: kind.trials for kind in kinds([])}
    assert {name: trials[name] for name in least} == least
    assert trials["cuts"] is None  # as many as there are bytes


# The harness itself: what it would not see, it could not count.


def _trial(context: object, number: int, rng: random.Random) -> Outcome:
    if number == 1:
        raise ZeroDivisionError("a defect")
    if number == 2:
        import os

        os.abort()
    if number == 3:
        return Outcome("silent", "other figures")
    return Outcome("right")


def test_defects_deaths_and_silence_are_counted(tmp_path: Path) -> None:
    row = run_kind(Kind("bad", "bad ones", 5, Path, _trial), tmp_path / "bad", 1.0, 0)
    assert row.trials == 5
    assert (row.counts["traceback"], row.counts["silent"], row.counts["right"]) == (2, 1, 2)
    assert [number for number, _ in row.bad] == [1, 2, 3]
    texts = [outcome.text for _, outcome in row.bad]
    assert "ZeroDivisionError: a defect" in texts[0] and "SIGABRT" in texts[1]
    assert "| bad | 5 | 0 | 2 | 0 | 0 | 0 | 1 | 2 | 0 |" in table([row])


def test_a_bad_trial_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = Kind("bad", "bad ones", 5, Path, _trial)
    monkeypatch.setattr("tests.faults.__main__.kinds", lambda only: [kind])
    assert main(["--folder", str(tmp_path)]) == 1
    assert "SILENT (--only bad --seed 0 --trial 3): other figures" in capsys.readouterr().out
    assert main(["--folder", str(tmp_path), "--trial", "0"]) == 0


def test_mutations_change_and_repeat_themselves() -> None:
    text = 'a = "b"\nn = [1, 2.5]\n'
    for mutate, what in (
        (mutations.mutate_bytes, text.encode()),
        (mutations.mutate_text, text),
        (mutations.mutate_file, text),
        (mutations.mutate_tree, {"a": [1, {"b": "c"}]}),
    ):
        found = [mutate(what, random.Random(seed)) for seed in range(200)]
        assert repr(found) == repr([mutate(what, random.Random(seed)) for seed in range(200)])
        assert len({repr(changed) for changed, _ in found}) > 40


def test_a_row_counts_each_outcome_once() -> None:
    row = Row("x")
    row.add(0, Outcome("right"))
    row.add(1, Outcome("lost", "it is gone"))
    assert row.trials == 2 and [number for number, _ in row.bad] == [1]
