"""Leftovers: files of sweeps beside results, and their removal, at the end of a sweep or the next start.

What belongs to other sweeps that are at work in the folder stays.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from vit_ptq_bench.bench.execution.logs import LOGS
from vit_ptq_bench.bench.records.files import remove_stale
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED

CACHE = ".cache"
"""What the runs of each sweep share, in a folder of its name."""

FOLDERS = ("", "runs/*/*", "models/*/*", SHARED, f"{SHARED}/{CLAIMS}")
"""Where files appear by renaming."""

logger = logging.getLogger(__name__)


def cache_of(folder: Path, sweep: str) -> Path:
    """Return the folder for what the runs of a sweep share."""
    return folder / CACHE / sweep


def remove(folder: Path, sweeps: Container[str] = (), runs: Container[str] = ()) -> None:
    """Remove shared results, temporary files of processes that are gone, and logs in which nothing stands.

    What cannot be removed now is told, and goes when a later sweep begins.

    Args:
        folder: of the records.
        sweeps: names of sweeps that are at work there.
        runs: ids of runs that are under way there.
    """
    for cache in (folder / CACHE).glob("*"):
        if cache.name not in sweeps:
            shutil.rmtree(cache, ignore_errors=True)
    with suppress(OSError):  # not there, or another sweep's lies in it
        (folder / CACHE).rmdir()
    try:
        for pattern in FOLDERS:
            for place in folder.glob(pattern) if pattern else [folder]:
                remove_stale(place)
        for log in (folder / LOGS).glob("*.log"):
            if log.stem not in runs and log.is_file() and log.stat().st_size == 0:
                log.unlink()
    except OSError as error:
        logger.warning("leftovers of a sweep stay in %s: %s", folder, error)
