"""Measurement of a run's cost: seconds by phase, and the highest memory of a phase."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MB = 10**6


class Stopwatch:
    """Wall-clock seconds by phase; on a GPU the queued work of a phase belongs to it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str, more: bool = False) -> Iterator[None]:
        """Time a phase, or ``more`` of one; it is noted also when the phase raises."""
        before = self.seconds.get(name, 0.0) if more else 0.0
        start = time.perf_counter()
        try:
            yield
            synchronize(self._device)
        finally:
            self.seconds[name] = round(before + time.perf_counter() - start, 3)

    def credit(self, name: str, seconds: float) -> None:
        """Add to a phase what another run has spent for it; the sum of all such is noted as ``shared``."""
        if seconds > 0:
            self.seconds[name] = round(self.seconds[name] + seconds, 3)
            self.seconds["shared"] = round(self.seconds.get("shared", 0.0) + seconds, 3)

    def total(self) -> dict[str, float]:
        """Seconds by phase, with ``total`` since the stopwatch was made."""
        return {**self.seconds, "total": round(time.perf_counter() - self._began, 3)}


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Highest memory since `reset`, in MB.

    On CUDA the most that torch had reserved on the device, which other processes cannot have, whether or
    not tensors fill it; elsewhere the resident set of the process. Only Linux can reset that high-water
    mark; on other systems it counts from the start of the process.

    Attributes:
        with_evaluation: whether a run's figure is that of its evaluation too. On CUDA it is: how many runs
            a device takes depends on it, and an evaluation may have larger batches than calibration. On a
            CPU the figure is what calibration takes, as in all records there are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.with_evaluation = device.type == "cuda"

    def reset(self) -> None:
        """Forget what was used before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # not Linux, or not allowed: the peak then counts from the start

    def read(self) -> float:
        """The peak in MB."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_reserved(self._device) / MB, 1)
        return round(_resident_peak() / MB, 1)


def _resident_peak() -> int:
    """Highest resident set of this process in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
