"""How much memory calibration may take, how much there is, and refusing what cannot fit before it starts."""

import ctypes
import math
import os
import sys
from pathlib import Path

import torch

from methods.errors import MethodError

GB = 10**9
DEFAULT_GB = 6.0


def budget() -> float:
    """Return the bytes of host memory that calibration may keep activations in.

    Raises:
        MethodError: the environment variable ``BENCH_CACHE_GB`` is not a positive number.
    """
    text = os.environ.get("BENCH_CACHE_GB", str(DEFAULT_GB))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0 or not math.isfinite(value):
        raise MethodError(f"BENCH_CACHE_GB must be a number of gigabytes above 0, not {text!r}")
    return value * GB


def available(device: torch.device) -> float:
    """Return the bytes that can be had on ``device``; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * float(found[0]) if found else math.inf


def require(need: float, device: torch.device, what: str) -> None:
    """Refuse what cannot fit.

    Args:
        need: bytes.
        device: where.
        what: is computed, for the message.

    Raises:
        MethodError: ``need`` is more than there is; both are said.
    """
    there = available(device)
    if need > there:
        raise MethodError(
            f"{what} needs about {need / GB:.1f} GB of memory and {there / GB:.1f} GB are free; use fewer "
            "calibration images, fewer runs at a time (--workers), or a machine with more"
        )


def give_back() -> None:
    """Return to the system what was freed, which glibc keeps for later until it is asked.

    Records outlive the passes that they come from, and are freed one by one: the holes that they leave are
    too small for the next pass.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
