"""The real command, ended in the middle: nothing lost, nothing twice, and it goes on."""

from __future__ import annotations

import importlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver as server_module
from pathlib import Path

import pytest

from tests.bench.toys import ROOT, command, records, results, run, start, write_suite
from vit_ptq_bench.bench.execution import forkserver
from vit_ptq_bench.bench.execution.interrupt import hold_interrupts, raise_interrupts
from vit_ptq_bench.bench.execution.server import STOPS
from vit_ptq_bench.bench.records.files import temporary_path
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED

METHODS = '["toy-plain", "toy-random", "toy-slow"]'
SLOW = {"parameters.toy-slow": "seconds = 4.0", "bits": '["W4A4", "W3A3"]'}
RUNS = 7
MARK = "TEST_MARK"
SETTLE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def answered() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it, also where the tests run under nohup(1)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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


def importing_server_of(mark: str) -> int | None:
    """The fork server among them, once it has begun to import torch."""
    for pid in processes_of(mark):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"multiprocessing.forkserver" in words and "libtorch" in maps(pid):
                return pid
        except OSError:
            continue
    return None


def maps(pid: int) -> str:
    """The files that a process has in its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


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


def claims(output: str) -> list[Path]:
    """The files of claims, and whatever else lies beside them."""
    return list((Path(output) / SHARED / CLAIMS).glob("*"))


def reports(output: str) -> list[Path]:
    """The reports of sweeps."""
    return list((Path(output) / SHARED).glob("[!.]*.json"))


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


def test_an_import_is_whole_before_a_signal_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scipy's modules in C++ end the whole program when something is raised while they are made."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt), raise_interrupts():
        slow = importlib.import_module("slow_to_import")
        assert slow.whole
        time.sleep(SETTLE_SECONDS)
    assert "slow_to_import" in sys.modules


@pytest.mark.skipif(not forkserver.HAS_SERVER, reason="each process is spawned")
@pytest.mark.parametrize("ending", STOPS)
def test_a_signal_while_the_fork_server_is_started_is_not_lost(
    ending: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sends one SIGHUP when a terminal is closed, at whatever moment that is."""
    monkeypatch.setattr(server_module, "ensure_running", lambda: os.kill(os.getpid(), ending))
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    with hold_interrupts() as interrupt:
        forkserver.ensure_server()
    assert interrupt.requested


@pytest.mark.skipif(not forkserver.HAS_SERVER, reason="each process is spawned")
def test_the_fork_server_ignores_what_ends_the_sweep(tmp_path: Path) -> None:
    """And blocks nothing, so that a run can answer such a signal as it likes."""
    program = (
        "import signal\n"
        "from multiprocessing import forkserver as server\n"
        "from vit_ptq_bench.bench.execution import forkserver\n"
        "if __name__ == '__main__':\n"
        "    forkserver.warm_up()\n"
        "    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "    process = forkserver.start_method().Process(target=int)\n"
        "    process.start()\n"  # it answers, so all is imported
        "    process.join()\n"
        "    print(open(f'/proc/{forkserver.server_pid()}/status').read())\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    masks = dict(re.findall(r"^(Sig\w+):\s*(\w+)$", done.stdout, re.MULTILINE))
    assert int(masks["SigBlk"], 16) == 0
    ignored = int(masks["SigIgn"], 16)
    assert all(ignored & 1 << number - 1 for number in STOPS)


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


def test_kill_9(sweep: tuple[subprocess.Popen[str], str]) -> None:
    process, output = sweep
    # Between two runs it has none, and a file that becomes one is left to whoever comes later.
    wait_for(lambda: [path for path in claims(output) if path.suffix == ".json"], "a run")
    stop(process, signal.SIGKILL, output)
    assert process.returncode == -signal.SIGKILL
    assert claims(output), "it could not give them up"
    check_resume(output)  # at once: its process is known to be gone
    assert not claims(output)


def test_a_terminal_that_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP by the kernel; what would be printed has no place any more, the leaderboard has."""
    write_suite(folder, METHODS, **SLOW)
    output = str(folder / "ended")
    child, terminal = pty.fork()
    if child == 0:  # the leader of a session on that terminal
        os.environ |= {MARK: output, "PYTHONPATH": str(ROOT)}
        os.execv(sys.executable, command("--output", output))
    seen = b""
    while len(records(output)) < 2:
        seen += os.read(terminal, 4096)
    assert b"all runs" in seen, "it shows its bars"
    os.close(terminal)
    wait_for(lambda: not processes_of(output), "the sweep to end")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert {record["status"] for record in records(output).values()} == {"ok"}
    assert (Path(output) / "leaderboard.md").is_file()
    assert not claims(output)


def test_ctrl_c_before_the_first_record(
    folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork server is still importing, and is stopped at that so that no run can be over."""
    process, output = begun(folder, temporary, monkeypatch)
    wait_for(lambda: reports(output), "the plan")
    send_when_started(process, signal.SIGINT)
    out, _ = process.communicate(timeout=SETTLE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in out
    assert "now nothing to do" in out and "the same command goes on from here" in out
    wait_for(lambda: not processes_of(output), "the fork server to end")
    assert not claims(output)
    assert not passing(temporary)


def test_kill_9_while_the_fork_server_imports(
    folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once, stopped or not, and what lies on disk goes at the next start."""
    process, output = begun(folder, temporary, monkeypatch)
    wait_for(lambda: reports(output), "the plan")
    process.kill()
    process.communicate(timeout=SETTLE_SECONDS)
    wait_for(lambda: not processes_of(output), "the fork server to end")
    left = Path(output)
    assert passing(temporary) and len(reports(output)) == 1
    (left / ".cache" / "its").mkdir(parents=True)
    (left / ".cache" / "its" / "key.safetensors").write_bytes(b"shared")
    (left / "logs").mkdir(exist_ok=True)
    (left / "logs" / "0.log").touch()
    dead = temporary_path(left / "runs" / "toy" / "toy_a" / "0.json")
    dead = dead.with_name(dead.name.replace(f".{os.getpid()}.", f".{process.pid}."))
    model = left / "models" / "toy" / "toy_a" / dead.name
    shared = left / SHARED / CLAIMS / dead.name
    for path in (dead, model, left / dead.name, shared, shared.parents[1] / dead.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    forkserver.warm_up()  # what is ours lies elsewhere
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert run("--output", output, "--methods", "toy-plain", "--bits", "W4A4") == 0
    assert not passing(temporary)
    names = {path.name for path in left.rglob("*") if path.is_file()}
    assert not {name for name in names if name[0] == "."}
    assert "0.log" not in names and not (left / ".cache").exists()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files; of a short name, for there are sockets among them."""
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        yield Path(name)


def passing(temporary: Path) -> list[Path]:
    """What is not kept for later: by the tasks, or by torch."""
    lasting = ("bench-", "torchinductor_")
    return [path for path in temporary.iterdir() if not path.name.startswith(lasting)]


def begun(
    folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[subprocess.Popen[str], str]:
    """A sweep of its own whose fork server was stopped while it imports, and its output folder."""
    write_suite(folder, METHODS, **SLOW)
    output = str(folder / "ended")
    with monkeypatch.context() as only:
        only.setenv(MARK, output)
        only.setenv("TMPDIR", str(temporary))
        process = start("--output", output)
    wait_for(lambda: importing_server_of(output) is not None, "the fork server")
    server = importing_server_of(output)
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    return process, output


def send_when_started(process: subprocess.Popen[str], ending: signal.Signals) -> None:
    """Send ``ending`` once the first run is to be started."""
    assert process.stdout is not None
    while "start toy_a fp32" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(ending)
