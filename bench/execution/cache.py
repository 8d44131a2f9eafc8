"""The cache of one sweep: a folder of tensors, each found by what it was made from.

A key is a hash over everything that the tensors follow from (weights, images, seed, threads, ...), so a run
that finds them gets what it would have computed itself, to the bit. The folder belongs to one sweep: it is
emptied before and removed afterwards, for another version of the code may compute something else. Each file
carries its key and a checksum: one that is damaged or belongs elsewhere costs its reader the time to compute
the tensors, and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.cache import lies_channels_last

_SUFFIX = ".safetensors"

_LOOK_AGAIN = 1.0
"""Seconds after which what other runs have written meanwhile is counted."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Made:
    """What making tensors took."""

    seconds: float
    peak_mb: float


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], _Made]:
    """Return the tensors of a file and what making them took.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is no whole safetensors file.
        ValueError: it is not what was written under ``key``.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    check = metadata.pop("check", None)
    if check != _checksum(key, metadata, tensors):
        raise ValueError("its checksum is another than that of its key and content")
    for name in json.loads(metadata["channels_last"]):
        tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    return tensors, _Made(float(metadata["seconds"]), float(metadata["peak_mb"]))


def _checksum(key: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum against accidents over all that a file holds, and where it belongs."""
    layout = [(name, str(t.dtype), tuple(t.shape)) for name, t in sorted(tensors.items())]
    check = zlib.crc32(repr((key, sorted(metadata.items()), layout)).encode())
    for name, _, _ in layout:
        check = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, check)
    return f"{check:08x}"


class CacheFolder:
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
        self._used, self._looked = 0, -math.inf
        self.seconds = 0.0
        self.peak_mb = 0.0

    def __contains__(self, key: str) -> bool:
        """Whether something lies under ``key``."""
        return self._path(key).exists()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what lies under ``key``, or None; laid out in memory as it was.

        A damaged file is removed with a warning, and None returned.
        """
        path = self._path(key)
        start = time.perf_counter()
        try:
            os.utime(path)
            tensors, made = _read(path, key)
        except FileNotFoundError:  # never made, or made room for another
            return None
        except (OSError, SafetensorError, ValueError) as error:
            if path.exists():  # else gone since the first look
                self._drop(path, error)
            return None
        self.seconds += max(0.0, made.seconds - (time.perf_counter() - start))
        self.peak_mb = max(self.peak_mb, made.peak_mb)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor], seconds: float = 0.0) -> None:
        """Keep ``tensors`` under ``key`` if there is room.

        Args:
            key: hash over all they follow from.
            tensors: on any device.
            seconds: what making them took and a calibration would have to pay; 0: no calibration pays for
                them (decoded images), and they take only room that is free. Read in order, a data set larger
                than the budget would else push out each image before its next use.

        A full disk is no error: the next run computes them again.
        """
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > self._budget or key in self:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._has_room(size, make=seconds > 0):
                self._used += self._write(key, tensors, seconds)
        except (OSError, SafetensorError) as error:
            logger.warning("nothing is shared with later runs: %s: %s", self._folder, error)

    def _write(self, key: str, tensors: Mapping[str, Tensor], seconds: float) -> int:
        """Return the bytes written."""
        temporary = self._folder / f".{key}.{os.getpid()}"
        metadata = {
            "seconds": repr(seconds),
            "peak_mb": repr(self._peak()),
            "channels_last": json.dumps([k for k, t in tensors.items() if lies_channels_last(t)]),
        }
        plain = {k: t.detach().contiguous().cpu() for k, t in tensors.items()}
        metadata["check"] = _checksum(key, metadata, plain)
        try:
            save_file(plain, temporary, metadata)
            size = temporary.stat().st_size
            temporary.replace(self._path(key))
            return size
        finally:
            temporary.unlink(missing_ok=True)

    def _drop(self, path: Path, error: Exception) -> None:
        """Remove a damaged file, so that the next run leaves a whole one."""
        logger.warning("shared file %s is damaged and computed again: %s", path.name, error)
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:  # each run then computes it itself
            logger.warning("cannot remove %s: %s", path, problem)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _has_room(self, size: int, make: bool) -> bool:
        """Whether ``size`` bytes fit, ``make``: after removing what was used longest ago."""
        if time.monotonic() - self._looked > _LOOK_AGAIN:
            self._used = sum(length for _, length, _ in self._kept())
        if self._used + size <= self._budget or not make:
            return self._used + size <= self._budget
        kept = self._kept()
        self._used = sum(length for _, length, _ in kept)
        for _, length, path in kept:
            if self._used + size <= self._budget:
                break
            path.unlink(missing_ok=True)  # another process may do the same
            self._used -= length
        return True

    def _kept(self) -> list[tuple[int, int, Path]]:
        """Time of last use, bytes and path of all that lies there, the oldest first."""
        self._looked = time.monotonic()
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        return sorted(found)
