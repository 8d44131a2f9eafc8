"""Sweeps as jobs of a real Slurm: what is cancelled, killed or preempted is neither lost nor doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.toys import records, results, run, start, write_suite
from tests.slurm.cluster import Cluster, cluster, missing
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED

pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

METHODS = '["toy-plain", "toy-random", "toy-slow"]'
FORTY = {
    "seeds": str(list(range(13))),
    "parameters.toy-slow": "seconds = 2.0",
}
RUNS = 40
"""Three methods, thirteen draws, and full precision."""

SLURM = ("--executor", "slurm", "--slurm", "partition=low,gres=gpu:1,time=10")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def here(folder: Path, slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    return slurm


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def jobs(slurm: Cluster, state: str) -> list[str]:
    told = slurm.ask("squeue", "--noheader", "--array", f"--states={state}", "--format=%i")
    return told.split()


def running_steps(slurm: Cluster) -> list[str]:
    """Steps that srun has begun, like ``12_3.0``; the batch script of a job, listed too, is none."""
    told = slurm.ask("squeue", "--noheader", "--steps", "--format=%i").split()
    return [step for step in told if step.rpartition(".")[2].isdigit()]


def requeued(slurm: Cluster) -> list[str]:
    """What Slurm says of the jobs that it has put back into the queue, a line each."""
    told = slurm.ask("scontrol", "--oneliner", "show", "job").splitlines()
    return [line for line in told if re.search(r"\bRestarts=[1-9]", line)]


def begun(output: str) -> Counter[str]:
    """How often each run was submitted."""
    paths = (Path(output) / SHARED).glob("*.events.jsonl")
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return Counter(line["run"] for line in lines if line["event"] == "run started")


def check_whole(output: str, runs: int, folder: Path) -> None:
    """All there, each once, as by `serial`."""
    assert len(records(output)) == runs
    assert run("--output", "alone", "--executor", "serial") == 0
    assert results(output) == results("alone")
    tables: list[Any] = []
    for name in (output, "alone"):
        lines = (Path(name) / "leaderboard.csv").read_text().splitlines()
        tables.append(sorted(line.split(",")[:6] for line in lines))
    assert tables[0] == tables[1]
    assert not [
        path for path in (Path(output) / SHARED / CLAIMS).iterdir() if path.suffix != ".tmp"
    ]


def test_a_sweep_in_which_a_job_is_cancelled_one_killed_one_preempted_and_the_controller_restarted(
    here: Cluster, folder: Path
) -> None:
    write_suite(folder, METHODS, **FORTY)
    process = start("--output", "there", "--dead-after", "20", *SLURM)
    wait_for(lambda: len(records("there")) >= 2)
    wait_for(lambda: jobs(here, "RUNNING"))
    here.ask("scancel", jobs(here, "RUNNING")[0])
    _kill_a_step(here)
    wait_for(lambda: jobs(here, "RUNNING"))
    other = subprocess.run(
        ["sbatch", "--partition=high", "--gres=gpu:2", "--exclusive", "--wrap=sleep 3"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert "Submitted" in other.stdout
    wait_for(lambda: requeued(here))  # while the controller still remembers the job
    wait_for(lambda: len(records("there")) >= 10)
    here.stop_controller()
    time.sleep(5)
    here.start_controller()
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    check_whole("there", RUNS, folder)
    assert sum(begun("there").values()) <= RUNS + 3, "no run was begun again without need"


def _kill_a_step(slurm: Cluster) -> None:
    """Kill the process of a job, of which a step runs: not its script alone, before or after the run.

    A step may end between being seen and being killed; then another one's turn has come.
    """
    killed: list[str] = []

    def kill() -> bool:
        for step in running_steps(slurm):
            if slurm.takes("scancel", "--signal=KILL", "--full", step.rpartition(".")[0]):
                killed.append(step)
                return True
        return False

    wait_for(kill)
    wait_for(lambda: killed[0] not in running_steps(slurm), seconds=60)


def test_jobs_outlive_the_sweep_that_sent_them(here: Cluster, folder: Path) -> None:
    write_suite(folder, '["toy-slow", "toy-plain"]', **{"parameters.toy-slow": "seconds = 8.0"})
    process = start("--output", "there", "--dead-after", "20", *SLURM)
    wait_for(lambda: len(records("there")) == 1 and jobs(here, "RUNNING"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = start("--output", "there", "--dead-after", "20", *SLURM)
    out, _ = again.communicate(timeout=600)
    assert again.returncode == 0, out
    check_whole("there", 3, folder)


def test_ctrl_c_cancels_the_jobs(here: Cluster, folder: Path) -> None:
    write_suite(folder, '["toy-slow"]', **{"parameters.toy-slow": "seconds = 600.0"})
    process = start("--output", "there", *SLURM)
    wait_for(lambda: len(records("there")) == 1 and jobs(here, "RUNNING"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    wait_for(lambda: not here.ask("squeue", "--noheader"))


@pytest.mark.parametrize(
    "words, told",
    [
        (("--slurm", "partition"), "write settings as"),
        (("--slurm", "nonsense=3"), "nonsense"),
        (("--slurm", "partition=none"), "Slurm does not take the jobs"),
    ],
)
def test_settings_that_are_none(
    here: Cluster,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    told: str,
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--executor", "slurm", *words) == 2
    assert told in capsys.readouterr().err
