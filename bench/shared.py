"""What the runs of one sweep share: a folder of tensors, each found by what it was made from.

A key is a hash over everything that the tensors follow from (weights, images, seed, threads, ...), so a run
that finds them gets what it would have computed itself, to the bit. The folder belongs to one sweep: it is
emptied before and removed afterwards, for another version of the code may compute something else.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

GB = 10**9
DEFAULT_GB = 4.0
"""What a sweep may keep on disk at a time."""

_SUFFIX = ".safetensors"

logger = logging.getLogger(__name__)


class SharedFolder:
    """The shared tensors as one run sees them.

    Args:
        folder: on a disk of this machine.
        budget: bytes that may lie there; what was used longest ago goes first.
        peak: reads the peak memory of this process in MB; noted with what it makes.

    Attributes:
        seconds: what the tensors found here took their makers, less what reading them took: a run's cost is
            what it would be alone, whichever run came first.
        peak_mb: highest peak memory among those makers; 0 if nothing was found.
    """

    def __init__(self, folder: Path, budget: int, peak: Callable[[], float]) -> None:
        self._folder, self._budget, self._peak = folder, budget, peak
        self.seconds = 0.0
        self.peak_mb = 0.0

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what lies under ``key``, or None."""
        path = self._path(key)
        start = time.perf_counter()
        try:
            os.utime(path)
            with safe_open(path, framework="pt") as file:
                made = file.metadata() or {}
            tensors = load_file(path)
        except FileNotFoundError:  # never made, or made room for another
            return None
        except SafetensorError:
            if path.exists():
                raise
            return None  # gone since the first look
        self.seconds += max(0.0, float(made["seconds"]) - (time.perf_counter() - start))
        self.peak_mb = max(self.peak_mb, float(made["peak_mb"]))
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor], seconds: float = 0.0) -> None:
        """Keep ``tensors`` under ``key`` if there is room.

        Args:
            key: hash over all they follow from.
            tensors: on any device.
            seconds: what making them took and a calibration would have to pay.

        A full disk is no error: the next run computes them again.
        """
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > self._budget or self._path(key).exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            self._write(key, tensors, seconds)
        except (OSError, SafetensorError) as error:
            logger.warning("nothing is shared with later runs: %s: %s", self._folder, error)

    def _write(self, key: str, tensors: Mapping[str, Tensor], seconds: float) -> None:
        temporary = self._folder / f".{key}.{os.getpid()}"
        metadata = {"seconds": repr(seconds), "peak_mb": repr(self._peak())}
        try:
            save_file({k: t.contiguous().cpu() for k, t in tensors.items()}, temporary, metadata)
            temporary.replace(self._path(key))
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago. Another process may do the same: gone is gone."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        used = sum(length for _, length, _ in found)
        for _, length, path in sorted(found):
            if used + size <= self._budget:
                return
            path.unlink(missing_ok=True)
            used -= length


def clear(folder: Path) -> None:
    """Remove the folder with all that is in it; a missing one is fine."""
    shutil.rmtree(folder, ignore_errors=True)
