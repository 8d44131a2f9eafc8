"""Where a run runs: versions, hardware, threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vit_ptq_bench.bench.execution.devices import core_count
from vit_ptq_bench.bench.planning import plugins
from vit_ptq_bench.version import distribution_version

PACKAGES = ("torch", "torchvision", "timm", "numpy")


def environment(device: torch.device, source: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready description of the machine, the software and the settings of this process.

    Args:
        device: where the run computes.
        source: what `source_state` says, asked once per sweep.
    """
    return {
        "vit_ptq_bench": distribution_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        "cpu": cpu_model(),
        "cores": core_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": _device_name(device),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        **source,
        "plugins": plugins.identities(),
    }


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_model() if device.type == "cpu" else device.type
