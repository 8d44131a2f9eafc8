"""The messages between a sweep and its worker processes; any start method can pickle them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.planning.plan import Run


@dataclass(frozen=True)
class Job:
    """One run, with all that its process needs to know.

    Attributes:
        run: what to run.
        task_options: the task's options object.
        output: folder of the store.
        device: torch device, in words.
        threads: torch threads of the process.
        plugins: plugin files to load first.
        model_file: where to keep the quantized model; None: measured and thrown away.
        log_file: takes what the run prints.
        source: state of the source tree, see `bench.environment.source_state`.
        scratch: folder for the run's temporary files; made by its process, removed with it.
        cache: folder and budget in bytes of what the sweep's runs share; None: nothing.
        before: start, end and status of the record that the run had when it was planned; None without one.
        claim: content of the sweep's claim, for a process that keeps it alive itself.
        dead_after, deterministic: see `RunOptions`.
    """

    run: Run
    task_options: Any
    output: Path
    device: str
    threads: int
    plugins: tuple[Path, ...]
    model_file: Path | None
    log_file: Path
    source: dict[str, Any]
    scratch: Path
    cache: tuple[Path, int] | None = None
    before: tuple[str | None, str | None, str] | None = None
    claim: bytes = b""
    dead_after: float = 120.0
    deterministic: bool = False


@dataclass(frozen=True)
class PhaseProgress:
    """The run is in ``phase`` (load, calibrate, save, evaluate), ``done`` of ``total`` steps."""

    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Finished:
    """The run's record is written."""

    status: str
    message: str = ""


@dataclass(frozen=True)
class CannotWrite:
    """The record could not be written; no later one can, so the sweep has to stop."""

    reason: str


NO_START = "no start"
"""The kind of a death before the process of the run has said a word: nothing of the run was tried."""


LOST = "lost"
"""The kind of a death from outside, of which the scheduler that has the run tells: somebody cancelled it."""


@dataclass(frozen=True)
class Died:
    """The process ended without a record; the sweep writes one. Made by an executor."""

    status: str
    kind: str
    message: str


Message = PhaseProgress | Finished | CannotWrite | Died
