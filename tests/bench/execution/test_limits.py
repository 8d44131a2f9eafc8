"""The default time limit of a run: far beyond what runs like it took, on such a device."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from tests.bench.samples import make_record
from tests.bench.toys import by_label, run, write_suite
from vit_ptq_bench.bench.execution import limits
from vit_ptq_bench.bench.execution.limits import LEAST_SECONDS, UNKNOWN_SECONDS, Limits
from vit_ptq_bench.bench.planning.plan import Run


def _run(**spec: object) -> Run:
    return Run(spec=replace(make_record().spec, **spec), fidelity="inspired", reference=None)


def test_what_is_known_of_runs_of_its_kind_decides() -> None:
    known = Limits(None)
    assert known.of(_run(), "cpu", 4).seconds == UNKNOWN_SECONDS
    known.learn(_run(), "cpu", 4, 1000.0)
    known.learn(_run(), "cpu", 4, 10.0)
    assert known.of(_run(), "cpu", 4).seconds == 20 * 1000.0
    assert known.of(_run(seed=7, bits="W3A3"), "cpu", 4).seconds == 20 * 1000.0
    for other in (
        known.of(_run(), "cpu", 1),
        known.of(_run(), "cuda:0", 4),
        known.of(_run(calibration=replace(_run().spec.calibration, images=9999)), "cpu", 4),
        known.of(_run(task=replace(_run().spec.task, limit=7)), "cpu", 4),
        known.of(_run(method=replace(_run().spec.method, parameters={"x": 1})), "cpu", 4),
    ):
        assert other.seconds == UNKNOWN_SECONDS
    known.learn(_run(), "cuda:1", 4, 1.0)
    assert known.of(_run(), "cuda:0", 4).seconds == LEAST_SECONDS


def test_an_earlier_sweep_counts_with_what_it_shared() -> None:
    known = Limits(None)
    environment = {"device": "cpu", "threads": 2}
    known.learn_record(_run(), {"total": 100.0, "shared": 900.0, "load": None}, environment)
    known.learn_record(_run(), {"total": None}, environment)
    known.learn_record(_run(), {"total": 10**6}, {})
    assert known.of(_run(), "cpu", 2).seconds == 20 * 1000.0


def test_the_user_decides() -> None:
    told, free = Limits(6.0), Limits(0.0)
    for some in (told, free):
        some.learn(_run(), "cpu", 1, 1000.0)
    assert told.of(_run(), "cpu", 1).seconds == 6.0
    assert free.of(_run(), "cpu", 1).seconds == inf


def test_a_run_that_hangs_is_ended_without_being_asked_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNKNOWN_SECONDS", 10.0)
    write_suite(folder, '["toy-slow"]', **{"parameters.toy-slow": "seconds = 600.0"})
    assert run() == 1
    slow = by_label()["toy_a toy-slow W4A4"]
    assert slow["status"] == "timeout"
    assert slow["error"]["message"] == (
        "stopped after 0:10 (no run is expected to take that); `--timeout SECONDS` sets another limit, 0 none"
    )
