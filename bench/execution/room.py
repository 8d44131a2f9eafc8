"""How many runs a device has memory for, from what runs like them took and what is free there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from vit_ptq_bench.bench.execution.limits import kind_of
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.records.record import Record

MB = 10**6

SHARE = 0.9
"""Of what is free so much may be used: allocators keep more than runs ask them for."""

CONTEXT_MB = 700.0
"""What a process takes on a GPU beside its tensors: the CUDA context and its kernels."""

SECONDS = 10.0
"""How long nvidia-smi may take."""

Free = Callable[[str], "float | None"]
"""Gives the free memory of a device in MB; None: nobody can tell."""


class Room:
    """Says whether a run fits beside those that are under way on its device.

    The first run of a device always fits: nothing else can make room for it. On a GPU a run of a kind that no
    record tells of begins alone, and so is measured; on a CPU, where memory is shared with everything
    else and mostly plenty, it does not wait.

    Args:
        free: see `Free`.
    """

    def __init__(self, free: Free | None = None) -> None:
        self._free = free or free_mb
        self._peaks: dict[str, float] = {}
        self._capacity: dict[str, float | None] = {}

    def learn(self, run: Run, record: Record) -> None:
        """Note the memory that a run took at its peak, if its record tells."""
        environment, peak = record.environment, record.peak_memory_mb
        device = environment.get("device")
        if isinstance(device, str) and peak is not None:
            kind = kind_of(run, device, 0)
            self._peaks[kind] = max(peak, self._peaks.get(kind, 0.0))

    def fits(self, run: Run, device: str, beside: Sequence[Run]) -> bool:
        """Whether ``run`` fits on ``device`` beside the runs that are under way there."""
        if not beside:
            self._capacity[device] = self._free(device)
            return True
        capacity = self._capacity.get(device)
        if capacity is None:
            return True
        needs = [self._need(one, device) for one in (run, *beside)]
        known = [need for need in needs if need is not None]
        if len(known) < len(needs) and device != "cpu":
            return False
        return sum(known) <= SHARE * capacity

    def _need(self, run: Run, device: str) -> float | None:
        """MB that a run takes at its peak; None where no run of its kind has told."""
        peak = self._peaks.get(kind_of(run, device, 0))
        if peak is None or device == "cpu":
            return peak
        return peak + CONTEXT_MB


def free_mb(device: str) -> float | None:
    """Return the free memory of a device in MB; None where the system does not tell."""
    return _free_on_cpu() if device == "cpu" else _free_on_gpu(device)


def _free_on_cpu() -> float | None:
    """What the system could give, and the control group of this process."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            free.append(float(most) - float((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such group, or of the older kind
    return max(0.0, min(free)) / MB if free else None


def _free_on_gpu(device: str) -> float | None:
    """What the driver says; asked of its own program, for a sweep's process does not import torch."""
    number = _physical(int(device.partition(":")[2] or 0))
    command = [
        "nvidia-smi",
        "--query-gpu=memory.free",
        "--format=csv,noheader,nounits",
        "-i",
        number,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return float(done.stdout.split()[0]) * 1024 * 1024 / MB  # it counts in MiB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _physical(index: int) -> str:
    """The driver's number or name of the GPU that torch calls ``cuda:index``."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return seen[index].strip() if index < len(seen) else str(index)
