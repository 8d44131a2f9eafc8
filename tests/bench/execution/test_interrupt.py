"""The real command, ended in the middle: nothing lost, nothing twice, and it goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.toys import records, results, run, start, write_suite

METHODS = '["toy-plain", "toy-random", "toy-slow"]'
SLOW = {"parameters.toy-slow": "seconds = 4.0", "bits": '["W4A4", "W3A3"]'}
RUNS = 7
MARK = "TEST_MARK"
SETTLE_SECONDS = 60.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SETTLE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def processes_of(mark: str) -> set[int]:
    """Processes that have inherited ``mark``: the sweep, its fork server, its workers."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.add(int(folder.name))
    return found


def stop(
    process: subprocess.Popen[str],
    ending: signal.Signals,
    output: str,
    send: Callable[[int, int], None] = os.kill,
) -> str:
    """End the sweep, make sure that nothing of it is left, and return what it printed."""
    send(process.pid, ending)
    out, _ = process.communicate(timeout=SETTLE_SECONDS)
    wait_for(lambda: not processes_of(output), "the workers to end")
    kept = records(output)
    assert 2 <= len(kept) < RUNS
    assert {record["status"] for record in kept.values()} == {"ok"}
    return out


def check_resume(output: str) -> None:
    """The same command finishes the sweep, and the end is that of an uninterrupted one."""
    stamps = {path: path.stat().st_mtime_ns for path in Path(output).rglob("runs/**/*.json")}
    assert run("--output", output) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}, "a finished run ran again"
    assert run("--output", "straight") == 0
    assert len(records(output)) == RUNS
    assert results(output) == results("straight")


@pytest.fixture
def sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[subprocess.Popen[str], str]:
    """A sweep of its own with two of its runs finished, and its output folder."""
    write_suite(folder, METHODS, **SLOW)
    output = str(folder / "ended")
    monkeypatch.setenv(MARK, output)
    process = start("--output", output)
    monkeypatch.delenv(MARK)
    wait_for(lambda: len(records(output)) >= 2, "two records")
    return process, output


def test_ctrl_c(sweep: tuple[subprocess.Popen[str], str]) -> None:
    process, output = sweep
    out = stop(process, signal.SIGINT, output)
    assert process.returncode == 130
    assert "the same command goes on from here" in out
    assert "Traceback" not in out
    assert (Path(output) / "leaderboard.md").is_file()
    check_resume(output)


def test_termination_of_the_process_group(sweep: tuple[subprocess.Popen[str], str]) -> None:
    process, output = sweep  # as timeout(1) and batch systems end a command
    out = stop(process, signal.SIGTERM, output, os.killpg)
    assert process.returncode == 130
    assert "the same command goes on from here" in out
    check_resume(output)


def test_one_sweep_per_folder_and_kill_9(
    sweep: tuple[subprocess.Popen[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    process, output = sweep
    assert run("--output", output) == 2
    message = capsys.readouterr().err
    assert re.search(rf"another sweep \(process {process.pid} on .*\) is writing", message)
    stop(process, signal.SIGKILL, output)
    assert process.returncode == -signal.SIGKILL
    check_resume(output)  # and the killed sweep holds no lock
