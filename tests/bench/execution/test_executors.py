"""Executors: the same results whatever carries out the runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.toys import by_label, records, results, run, start, write_suite
from vit_ptq_bench.bench.execution import forkserver
from vit_ptq_bench.bench.execution.interrupt import SIGHUP
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED

METHODS = '["toy-plain", "toy-random", "toy-fail", "toy-memory"]'


def without_frames(output: str) -> dict[str, Any]:
    """The results; of an error what it says, not through which functions it came."""
    found = results(output)
    for record in found.values():
        (record["error"] or {}).pop("traceback", None)
    return found


def test_runs_of_this_process_are_those_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(folder, METHODS, seeds="[0, 1]")
    assert run("--output", "local") == 1
    with monkeypatch.context() as patched:
        patched.setattr(forkserver, "start_method", lambda: pytest.fail("a process is started"))
        assert run("--output", "serial", "--executor", "serial") == 1
    assert without_frames("serial") == without_frames("local")
    assert not (Path("serial") / ".cache").exists()


@pytest.mark.skipif(SIGHUP is None, reason="signals of POSIX")
def test_ctrl_c_ends_a_run_of_this_process(folder: Path) -> None:
    write_suite(folder, '["toy-plain", "toy-slow"]', **{"parameters.toy-slow": "seconds = 60"})
    process = start("--executor", "serial")
    end = time.monotonic() + 120
    while len(records()) < 2 or not list(Path("output/toy", SHARED, CLAIMS).glob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from here" in out and "Traceback" not in out
    assert {name.split()[1] for name in by_label()} == {"fp32", "toy-plain"}
    assert not list(Path("output/toy", SHARED, CLAIMS).iterdir())


@pytest.mark.parametrize("executor", ["local", "serial"])
def test_what_has_no_deterministic_form_warns_or_fails(folder: Path, executor: str) -> None:
    write_suite(folder, '["toy-put", "toy-plain"]')
    assert run("--output", "warns", "--executor", executor) == 0
    warned = by_label("warns")["toy_a toy-put W4A4"]["environment"]["warnings"]
    assert any("put_ does not have a deterministic implementation" in text for text in warned)
    assert run("--output", "fails", "--executor", executor, "--deterministic") == 1
    found = by_label("fails")
    assert found["toy_a toy-put W4A4"]["status"] == "failed"
    assert "deterministic implementation" in found["toy_a toy-put W4A4"]["error"]["message"]
    assert found["toy_a toy-plain W4A4"]["status"] == "ok"
