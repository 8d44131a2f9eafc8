"""Runs as jobs of Slurm, through submitit: array jobs that write their records into the shared folder.

What Slurm says of a job is asked of ``squeue`` and ``scontrol``, which every cluster has; what came of a run
is read from its record, never from a file that would have to be unpickled. The claim of a run goes from the
sweep to its job, which keeps it alive from the node: if the sweep's process dies, its jobs go on, and the
next sweep counts what they make.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution.devices import Slot
from vit_ptq_bench.bench.execution.executors.api import Submitted
from vit_ptq_bench.bench.execution.executors.node import RunOnNode
from vit_ptq_bench.bench.execution.limits import Limit
from vit_ptq_bench.bench.execution.messages import LOST, Died, Finished, Job, Message, PhaseProgress
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.claims import SHARED

ASK_SECONDS = 2.0
"""Between two questions to Slurm."""

SILENT_SECONDS = 600.0
"""For how long Slurm may not answer (its controller is restarted) before the sweep gives up."""

MINUTES = 24 * 60
"""Time limit of a job where neither ``--slurm time`` nor ``--timeout`` says one."""

KILLED = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")
"""States in which a job ended for reasons that lie outside it."""


@dataclass
class _Sent:
    """A run that is a job, or is to become one."""

    job: Job
    slot: Slot
    began: float = field(default_factory=time.monotonic)
    number: str = ""
    phase: str = "submitted"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class SlurmExecutor:
    """Sends the jobs of one turn as one array.

    Args:
        folder: of the records, which all nodes see.
        sweep: name of the sweep, in the names of its jobs.
        settings: from `parse_settings`.
        minutes: time limit of a job, unless ``settings`` say one.

    Raises:
        BenchError: submitit or Slurm is missing, or a setting is none.
    """

    def __init__(
        self, folder: Path, sweep: str, settings: Mapping[str, Any], minutes: int = MINUTES
    ) -> None:
        self._executor = _submitit_executor(folder, sweep, settings, minutes)
        self._store = Store(folder)
        self._waiting: list[_Sent] = []
        self._sent: list[_Sent] = []
        self._asked = -float("inf")
        self._answered = time.monotonic()

    @property
    def active(self) -> Sequence[Submitted]:
        """See `Executor`."""
        return (*self._waiting, *self._sent)

    def submit(self, job: Job, slot: Slot, limit: Limit) -> Submitted:
        """See `Executor`; sent at the next `poll`, with all others. The time limit is the job's."""
        sent = _Sent(job, slot)
        self._waiting.append(sent)
        return sent

    def poll(self, seconds: float) -> Iterator[tuple[Submitted, Message]]:
        """See `Executor`.

        Raises:
            BenchError: Slurm refuses a job, or gives no answer for long.
        """
        self._send()
        time.sleep(seconds)
        if time.monotonic() - self._asked < ASK_SECONDS or not self._sent:
            return
        states = self._states()
        if states is None:
            return
        for sent in list(self._sent):
            state = states.get(sent.number)
            if state is None:
                self._sent.remove(sent)
                yield sent, self._end_of(sent)
            elif state != sent.phase:
                sent.phase = state
                yield sent, PhaseProgress(state.lower())

    def cancel(self) -> None:
        """See `Executor`."""
        numbers = [sent.number for sent in self._sent]
        if numbers:
            _answer(["scancel", *numbers])
        self._waiting.clear()
        self._sent.clear()

    def _send(self) -> None:
        if not self._waiting:
            return
        from submitit.core.utils import FailedJobError

        try:
            with self._executor.batch():
                jobs = [self._executor.submit(RunOnNode(sent.job)) for sent in self._waiting]
        except FailedJobError as error:  # with what sbatch has said
            raise BenchError(f"Slurm does not take the jobs: {error}") from error
        for sent, job in zip(self._waiting, jobs, strict=True):
            sent.number = str(job.job_id)
        self._sent += self._waiting
        self._waiting = []

    def _states(self) -> dict[str, str] | None:
        """State of every job of this user that waits or runs, by its number; None: no answer this time."""
        self._asked = time.monotonic()
        told = _answer(["squeue", "--noheader", "--array", "--me", "--format=%i %T"])
        if told is None:
            if time.monotonic() - self._answered > SILENT_SECONDS:
                raise BenchError(
                    f"squeue has not answered for {SILENT_SECONDS:g} seconds; the jobs go on without this "
                    "sweep, and the same command counts what they have made"
                )
            return None
        self._answered = time.monotonic()
        return dict(line.split(maxsplit=1) for line in told.splitlines() if " " in line)

    def _end_of(self, sent: _Sent) -> Message:
        """What became of a job that Slurm has done with: its record says it, or Slurm does."""
        record = self._store.read(sent.job.run)
        if record is not None and _is_of(record, sent):
            return Finished(record.status, str((record.error or {}).get("message", "")))
        state = _state_of(sent.number)
        told = f"Slurm ended job {sent.number} without a record: {state or 'no state is known'}"
        if state is None or state.startswith(KILLED) or state == "COMPLETED":
            return Died("failed", LOST, told)
        if state.startswith("OUT_OF_MEMORY"):
            return Died("oom", state, told)
        return Died("timeout" if state == "TIMEOUT" else "failed", state, told)


def _is_of(record: Record, sent: _Sent) -> bool:
    """Whether a record is not the one that the sweep has found there."""
    before = sent.job.before
    return before is None or (record.started, record.finished, record.status) != before


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings of jobs that ``partition=gpu``, ``time=240`` ... mean; numbers are numbers.

    Raises:
        BenchError: a word is no setting.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+", name):
            raise BenchError(f"--slurm {word!r}: write settings as partition=gpu,time=240")
        settings[name] = int(value) if value.isascii() and value.isdigit() else value
    return settings


def _submitit_executor(folder: Path, sweep: str, settings: Mapping[str, Any], minutes: int) -> Any:
    try:
        import submitit
    except ImportError:
        raise BenchError(
            "--executor slurm needs submitit, which the extra `slurm` installs: pip install submitit"
        ) from None
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        raise BenchError("--executor slurm: there is no Slurm here (sbatch, squeue)")
    place = folder / SHARED / f"slurm-{sweep}"
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)  # jobs are read from it as programs are
    executor = submitit.SlurmExecutor(place.resolve(), max_num_timeout=3)
    try:
        executor.update_parameters(
            **{"time": minutes, "job_name": f"bench-{sweep}"} | dict(settings)
        )
    except (ValueError, TypeError) as error:
        raise BenchError(f"--slurm: {error}") from error
    return executor


def _state_of(number: str) -> str | None:
    """The last state of a job that Slurm still remembers."""
    told = _answer(["scontrol", "--oneliner", "show", "job", number])
    found = re.search(r"\bJobState=(\S+)", told or "")
    return None if found is None else found[1]


def _answer(words: Sequence[str]) -> str | None:
    """What a command of Slurm prints; None where it fails, as while the controller is restarted."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
