"""Faults of processes, memory and the output folder, really caused: one run is lost at most, and said."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.toys import by_label, records, results, run, start, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.execution import forkserver
from vit_ptq_bench.bench.execution.executors import local as executor
from vit_ptq_bench.methods.apq_vit import ApqVit
from vit_ptq_bench.methods.minmax import MinMax

pytestmark = pytest.mark.skipif(not forkserver.HAS_SERVER, reason="signals and /proc of Linux")

STOP = int(signal.SIGSTOP)


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` beside the block, which must outlast it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(1)
    assert not thread.is_alive(), "what was to happen did not"


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_stopped_worker_costs_its_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "STOPPED_SECONDS", 1.0)
    stops = {"parameters.toy-killed": f"number = {STOP}"}
    write_suite(folder, '["toy-killed", "toy-plain"]', **stops)
    assert run() == 1
    found = by_label()
    stopped = found["toy_a toy-killed W4A4"]
    assert (stopped["status"], stopped["error"]["type"]) == ("failed", "stopped")
    assert "was stopped by a signal" in stopped["error"]["message"]
    assert found["toy_a toy-plain W4A4"]["status"] == "ok"


@pytest.mark.parametrize("number", [int(signal.SIGKILL), STOP])
def test_a_fork_server_that_is_killed_or_stopped_costs_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(executor, "STOPPED_SECONDS", 1.0)
    monkeypatch.setattr(executor, "KILL_SECONDS", 1.0)
    before = forkserver.server_pid()
    settings = {"parameters.toy-parricide": f"number = {number}"}
    write_suite(folder, '["toy-parricide", "toy-slow", "toy-plain"]', **settings)
    assert run("--workers", "2") == 0
    assert {record["status"] for record in records().values()} == {"ok"}
    assert len(records()) == 4
    assert forkserver.server_pid() != before


def test_a_fork_server_that_never_answers_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is stopped before the first run; that it is, nobody looks for here: only the time limit tells."""
    monkeypatch.setattr(executor, "STOPPED_SECONDS", 1e9)
    forkserver.warm_up()
    first = forkserver.server_pid()
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(executor, "START_SECONDS", 1.0)

    def patience() -> None:
        wait_for(lambda: not Path(f"/proc/{first}/fd").exists() or not _maps(first))
        monkeypatch.setattr(executor, "START_SECONDS", 900.0)

    write_suite(folder, '["toy-plain"]')
    with meanwhile(patience):
        assert run() == 0
    assert "once more toy_a" in capsys.readouterr().out


def _maps(pid: int) -> str:
    """The memory of a process; none once it is killed."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def test_a_worker_that_never_speaks_costs_its_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for a reader of its log, which is a pipe here: on a network folder it can hang like that."""
    write_suite(folder, '["toy-random", "toy-plain"]')
    assert run("--methods", "toy-random") == 0
    random = by_label()["toy_a toy-random W4A4"]
    for path in Path("output/toy/runs").rglob(f"{random['run_id']}.*"):
        path.unlink()
    log = Path(f"output/toy/logs/{random['run_id']}.log")
    log.unlink(missing_ok=True)
    os.mkfifo(log)
    monkeypatch.setattr(executor, "START_SECONDS", 5.0)
    assert run() == 1
    assert "once more toy_a toy-random" in capsys.readouterr().out
    found = by_label()
    assert found["toy_a toy-random W4A4"]["status"] == "timeout"
    assert "said nothing within 5 seconds" in found["toy_a toy-random W4A4"]["error"]["message"]
    assert found["toy_a toy-plain W4A4"]["status"] == "ok"


@pytest.mark.parametrize(("deaths", "status"), [(1, "ok"), (2, "oom")])
def test_a_killed_reference_is_tried_once_more(
    folder: Path, capsys: pytest.CaptureFixture[str], deaths: int, status: str
) -> None:
    (folder / "deaths").write_text(str(deaths))
    write_suite(folder, '["toy-plain"]', models='["toy_frail"]')
    assert run("--data-dir", str(folder)) == (status != "ok")
    assert "once more toy_frail fp32" in capsys.readouterr().out
    found = by_label()
    assert found["toy_frail fp32 W32A32"]["status"] == status
    assert found["toy_frail toy-plain W4A4"]["status"] == ("ok" if status == "ok" else "skipped")
    assert (folder / "deaths").read_text() == "0", "no more than twice"


def test_out_of_memory_halves_the_batch_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-scarce"]')
    assert run("--output", "halved") == 0
    halved = by_label("halved")["toy_a toy-scarce W4A4"]
    assert halved["status"] == "ok"
    assert halved["environment"]["warnings"] == [
        "out of memory with batches of 8 images; calibrated again with batches of 4",
        "out of memory with batches of 4 images; calibrated again with batches of 2",
    ]
    assert "warned while calibrating" in Path("halved/leaderboard.md").read_text()
    write_suite(folder, '["toy-scarce"]', **{"parameters.toy-scarce": "batch_size = 2"})
    assert run("--output", "asked") == 0
    asked = by_label("asked")["toy_a toy-scarce W4A4"]
    assert asked["environment"]["warnings"] == []
    assert asked["outcomes_sha256"] == halved["outcomes_sha256"]
    assert asked["metrics"] == halved["metrics"]
    write_suite(folder, '["toy-scarce"]', **{"parameters.toy-scarce": "fits = 0"})
    assert run("--output", "hopeless") == 1
    hopeless = by_label("hopeless")["toy_a toy-scarce W4A4"]
    assert hopeless["status"] == "oom"
    assert "can't allocate memory" in hopeless["error"]["message"]
    assert len(hopeless["environment"]["warnings"]) == 3, (
        "8, 4, 2, and with 1 there is nothing to halve"
    )


def test_which_methods_allow_half_the_batch() -> None:
    half = ApqVit.create({"batch_size": 5}).with_half_batch()
    assert half is not None and half.parameters == ApqVit.create({"batch_size": 2}).parameters
    assert ApqVit.create({"batch_size": 1}).with_half_batch() is None
    assert MinMax.create().with_half_batch() is None


SLOW_END = {"parameters.toy-slow": "seconds = 6.0"}


def test_a_long_path_for_temporary_files_stops_no_sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket can lie under so long a path."""
    temporary = folder / ("t" * 200)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    write_suite(folder, '["toy-plain"]')
    process = start("--output", "output/toy")
    assert process.wait(120) == 0, process.stdout.read()
    assert len(records()) == 2
    assert not list(temporary.glob("benchrun-*"))


def test_records_removed_during_a_sweep_are_lost_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain", "toy-random", "toy-slow"]', **SLOW_END)

    def remove() -> None:
        wait_for(lambda: len(records()) == 3)
        Path("output/toy").rename("gone")  # at once, while others write there

    with meanwhile(remove):
        assert run("--workers", "1") == 1
    out = capsys.readouterr().out
    assert "4 runs: 0 had their record; now 1 ok" in out
    assert "3 lost: their records were written and are not there any more" in out
    assert run() == 0
    assert len(records()) == 4


def test_a_record_that_was_there_before_and_goes_is_lost_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain", "toy-slow"]', **SLOW_END)
    assert run("--methods", "toy-plain") == 0
    plain = by_label()["toy_a toy-plain W4A4"]

    def damage() -> None:
        wait_for(lambda: list(Path("output/toy/.sweeps").glob("[!.]*.json")))
        wait_for(lambda: bool(list(Path("output/toy/logs").glob("*.log"))))
        next(Path("output/toy").rglob(f"{plain['run_id']}.json")).write_text("{")

    capsys.readouterr()
    with meanwhile(damage):
        assert run() == 1
    out = capsys.readouterr().out
    assert (
        f"1 lost: their records were written and are not there any more, or not whole (the first is "
        f"{plain['run_id']}, toy_a toy-plain W4A4" in out
    )
    assert "findings about the records of this folder: 1;" in out
    assert f"damaged, counts as missing: runs/toy/toy_a/{plain['run_id']}.json" in out


def test_a_folder_that_takes_no_record_any_more_ends_the_sweep_with_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain", "toy-slow", "toy-random"]', **SLOW_END)

    def block() -> None:
        wait_for(lambda: len(records()) == 2)
        Path("output/toy").rename("gone")  # at once, while others write there
        Path("output/toy").write_text("a file in the way")

    with meanwhile(block):
        assert run("--workers", "1") == 2
    assert "error: cannot write to output/toy: " in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-1", "nan", "inf", "1e300", "1" + 400 * "0"])
def test_odd_limits_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--timeout", number) == 2
    assert run("--workers", str(10**22)) == 2
    assert run("--share-gb", number) == 2
    err = capsys.readouterr().err
    assert err.count("error: --timeout: ") == err.count("error: --share-gb: ") == 1
    assert f"--workers: must be at most 1024, not 1{22 * '0'}" in err
    Path("bench.toml").write_text(f"[run]\nworkers = {10**18}\n")
    assert run() == 2
    assert "bench.toml:2: run.workers: must be at most 1024" in capsys.readouterr().err


def test_zero_is_no_limit(folder: Path) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--timeout", "0") == 0
    assert len(results()) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mps", "the benchmark does not run on mps devices"),
        ("xpu:1", "the benchmark does not run on xpu devices"),
        ("cpu:3", "unknown device 'cpu:3'"),
        ("cuda:-1", "unknown device 'cuda:-1'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:300", "there is no device 'cuda:300'"),
        ("cuda:99999999999999999999", "unknown device"),
    ],
)
def test_a_device_that_is_not_there_gets_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--device", name) == 2
    assert message in capsys.readouterr().err
    assert main(["evaluate", "nothing.safetensors", "--device", name]) == 2
    assert message in capsys.readouterr().err
