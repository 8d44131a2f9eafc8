"""Runs beside each other on one device, as far as its memory goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.bench.samples import make_record
from tests.bench.toys import FAKES, run, write_suite
from vit_ptq_bench.bench.execution import room
from vit_ptq_bench.bench.execution.devices import Slot
from vit_ptq_bench.bench.execution.display import make_display
from vit_ptq_bench.bench.execution.interrupt import Interrupt
from vit_ptq_bench.bench.execution.limits import Limit
from vit_ptq_bench.bench.execution.messages import Job
from vit_ptq_bench.bench.execution.room import CONTEXT_MB, Room, free_mb
from vit_ptq_bench.bench.execution.sweep import Sweep
from vit_ptq_bench.bench.planning.overwrite import decisions_of
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.planning.settings import resolve_run
from vit_ptq_bench.bench.records.files import prepare
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.claims import SHARED


def planned(method: str) -> Run:
    return Run(make_record(method=method).spec, "reimplementation", "0" * 16)


def taught(free: float | None, device: str = "cpu", **peaks: float) -> Room:
    """A room of so much memory that knows the peaks of methods."""
    made = Room(lambda name: free)
    for method, peak in peaks.items():
        record = replace(
            make_record(method=method),
            peak_memory_mb=peak,
            environment={"device": device, "threads": 1},
        )
        made.learn(planned(method), record)
    return made


def test_runs_begin_while_their_peaks_fit_together() -> None:
    known = taught(1000.0, small=300, large=650)
    assert known.fits(planned("large"), "cpu", [])  # alone always
    assert not known.fits(planned("small"), "cpu", [planned("large")])  # 950 of 900
    assert known.fits(planned("small"), "cpu", [planned("small"), planned("small")])
    assert not known.fits(planned("small"), "cpu", [planned("small")] * 3)


def test_a_run_that_is_too_large_for_all_begins_alone() -> None:
    assert taught(100.0, large=650).fits(planned("large"), "cpu", [])


def test_what_nobody_has_measured_waits_on_a_gpu_only() -> None:
    for device, waits in (("cpu", False), ("cuda:0", True)):
        known = taught(10_000.0, device, small=300)
        assert known.fits(planned("small"), device, [])
        assert known.fits(planned("new"), device, [planned("small")]) is not waits
        assert known.fits(planned("small"), device, [planned("new")]) is not waits


def test_a_process_on_a_gpu_takes_more_than_its_tensors() -> None:
    known = taught((2 * 300 + CONTEXT_MB) / 0.9, "cuda:0", small=300)
    assert known.fits(planned("small"), "cuda:0", [])
    assert not known.fits(planned("small"), "cuda:0", [planned("small")])


def test_without_a_word_of_the_system_all_begin() -> None:
    known = taught(None, "cuda:0", small=1e9)
    assert known.fits(planned("small"), "cuda:0", [])
    assert known.fits(planned("small"), "cuda:0", [planned("small")])


def test_the_memory_of_this_machine() -> None:
    free = free_mb("cpu")
    assert free is not None and 10 < free < 10**8


@pytest.mark.parametrize(
    ("printed", "visible", "free", "asked"),
    [
        ("81000", "", 81000 * 1.048576, "1"),
        ("N/A", "", None, "1"),
        ("7", "4,GPU-af", 7.340032, "GPU-af"),
    ],
)
def test_a_gpu_is_asked_of_the_driver(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: str,
    visible: str,
    free: float | None,
    asked: str,
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho {printed}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free_mb("cuda:1") == (free if free is None else pytest.approx(free))
    assert (tmp_path / "asked").read_text().split()[-1] == asked
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert free_mb("cuda:0") is None


def test_a_sweep_makes_no_more_runs_at_a_time_than_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sweep measures; the second has four workers, and memory for two such runs."""
    write_suite(folder, '["toy-slow"]', models='["toy_a"]', seeds="[0, 1, 2, 3, 4, 5]")
    assert run("--output", "first", "--workers", "4") == 0
    peaks = [
        json.loads(path.read_text())["peak_memory_mb"]
        for path in Path("first").rglob("runs/**/*.json")
    ]
    assert most_at_a_time("first") > 2
    for path in Path("first").rglob("*.npz"):
        path.unlink()  # so that all runs are made again, and their records tell what they take
    monkeypatch.setattr(room, "free_mb", lambda device: 2.5 * max(peaks) / room.SHARE)
    assert run("--output", "first", "--workers", "4", "--overwrite", "missing") == 0
    assert most_at_a_time("first") == 2


class Endless:
    """Takes jobs, none of which ever ends: there is no GPU in a test that could carry them out."""

    def __init__(self) -> None:
        self.active: list[SimpleNamespace] = []

    def submit(self, job: Job, slot: Slot, limit: Limit) -> SimpleNamespace:
        self.active.append(SimpleNamespace(job=job, slot=slot, seconds=1.0))
        return self.active[-1]

    def poll(self, seconds: float) -> Iterator[Any]:
        return iter(())

    def cancel(self) -> None:
        self.active.clear()


def test_a_full_device_leaves_the_slots_of_others_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is in the third of three slots on two devices: nothing fits beside it, the second is idle."""
    write_suite(folder, '["toy-plain"]', models='["toy_a", "toy_b"]')
    monkeypatch.setattr(room, "free_mb", lambda device: 10_000.0)
    words = {"suite": "toy.toml", "plugin": [FAKES], "device": "cuda:0,cuda:1", "workers": "3"}
    options = resolve_run(words)
    prepare(options.folder)
    decisions = decisions_of(options)
    with make_display(Console(), len(decisions)) as display:
        sweep = Sweep(decisions, Store(options.folder), options, display)
        executor = sweep._executor = Endless()
        third = sweep._slots[2]
        large = sweep._next(third)
        assert large is not None and third.device == "cuda:0"
        sweep._pending.remove(large)
        executor.submit(sweep._job(large, third), third, Limit(60.0, ""))
        sweep._turn(Interrupt())
    assert [active.job.device for active in executor.active] == ["cuda:0", "cuda:1"]


def most_at_a_time(output: str) -> int:
    """Of the sweep that ended last, how many runs were under way at once at most."""
    (latest,) = sorted(
        (Path(output) / SHARED).glob("*.events.jsonl"), key=lambda p: p.stat().st_mtime
    )[-1:]
    most = now = 0
    for line in latest.read_text().splitlines():
        event = json.loads(line)["event"]
        now += {"run started": 1, "run ended": -1}.get(event, 0)
        most = max(most, now)
    return most
