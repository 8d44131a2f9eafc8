"""Devices, and the slots that runs get on them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.registry import is_small
from vit_ptq_bench.bench.planning.settings import RunOptions

OTHER_KINDS = ("mps", "xpu", "hpu", "xla", "mtia", "npu", "vulkan", "meta")
"""Devices of torch that nothing here was tried on: memory, seeds and float64 work differently there."""


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        BenchError: saying what there is.
    """
    number = check_spelling(name)
    if number is None:
        return
    import torch  # only where a device other than the CPU is asked for: it takes seconds

    there = torch.cuda.device_count()
    if number >= there:
        use = f"cuda:0 to cuda:{there - 1}" if there else "--device cpu"
        built = "" if torch.version.cuda else ", which was built without CUDA,"
        job = os.environ.get("SLURM_JOB_ID")  # set by Slurm on the node
        asked = f", or ask Slurm for more than job {job} got (--slurm gres=gpu:1)" if job else ""
        raise BenchError(
            f"there is no device {name!r}: torch {torch.__version__}{built} sees {there} CUDA devices here; "
            f"use {use}{asked}"
        )


def check_spelling(name: str) -> int | None:
    """The number of a CUDA device, also of one that another machine has; None for the CPU.

    Raises:
        BenchError: no device is called that, or none that the benchmark runs on.
    """
    if name == "cpu":
        return None
    kind = name.partition(":")[0]
    if kind in OTHER_KINDS:
        raise BenchError(
            f"the benchmark does not run on {kind} devices ({name!r}): results are compared between cpu "
            "and cuda only; use --device cpu, cuda:0, ..."
        )
    number = re.fullmatch(r"cuda(?::([0-9]{1,9}))?", name)
    if number is None:
        raise BenchError(f"unknown device {name!r}; use cpu, cuda:0, ...")
    return int(number[1] or 0)


def check_devices(options: RunOptions) -> None:
    """Refuse devices that a sweep could not run on.

    A login node of Slurm has no GPU mostly: there each run looks for its device where it is carried out.

    Raises:
        BenchError: one is not there, or no device at all.
    """
    for name in options.device:
        if options.executor == "slurm":
            check_spelling(name)
        else:
            check_device(name)


def core_count() -> int:
    """Cores this process may use; OMP_NUM_THREADS, where set, lowers it."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return (
        min(cores, int(wanted))
        if wanted.isascii() and wanted.isdigit() and int(wanted) > 0
        else cores
    )


SMALL_RUNS = 8
"""Runs of small models that a sweep makes at a time at most, unless asked for more: about 1 GB each."""


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time: a device and a number of torch threads."""

    index: int
    device: str
    threads: int


def slots_of(options: RunOptions) -> list[Slot]:
    """One slot per worker of a sweep."""
    if options.executor == "serial":
        return make_slots(1, options.device, core_count())
    if options.executor == "slurm":
        return _slots_of_jobs(options)
    small = all(is_small(task) for task in options.tasks)
    workers = options.workers or default_workers(options.device, core_count(), small)
    return make_slots(workers, options.device, core_count())


MOST_JOBS = 500
"""Jobs of Slurm that wait or run at a time, unless ``--workers`` says how many."""


def _slots_of_jobs(options: RunOptions) -> list[Slot]:
    """One slot per job that may be in the queue; threads are those that a job asks for."""
    asked = [word.partition("=")[2] for word in options.slurm if word.startswith("cpus_per_task=")]
    threads = int(asked[-1]) if asked and asked[-1].isdigit() else 1
    jobs = options.workers or MOST_JOBS
    return [Slot(index, options.device[0], max(1, threads)) for index in range(jobs)]


def make_slots(workers: int, devices: Sequence[str], cores: int) -> list[Slot]:
    """``workers`` slots that share the devices in turn and the cores evenly."""
    threads = max(1, cores // workers)
    return [Slot(index, devices[index % len(devices)], threads) for index in range(workers)]


def default_workers(devices: Sequence[str], cores: int, small: bool) -> int:
    """How many runs a sweep makes at a time where nobody says it.

    One per device; of ``small`` models, which compute on one thread, one per core of a CPU.
    """
    if small and list(devices) == ["cpu"]:
        return min(cores, SMALL_RUNS)
    return len(devices)
