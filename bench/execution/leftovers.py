"""Leftovers: files of sweeps beside results, and their removal, at the end of a sweep or the next start.

Whoever removes holds the folder's lock, so no other sweep is at work there.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from vit_ptq_bench.bench.execution.logs import LOGS
from vit_ptq_bench.bench.records.files import remove_stale

CACHE = ".cache"
"""What the runs of a sweep share."""

FOLDERS = ("", "runs/*/*", "models/*/*")
"""Where files appear by renaming."""

logger = logging.getLogger(__name__)


def remove(folder: Path) -> None:
    """Remove shared results, temporary files of processes that are gone, and logs in which nothing stands.

    What cannot be removed now is told, and goes when a later sweep begins.
    """
    shutil.rmtree(folder / CACHE, ignore_errors=True)  # a missing one is fine
    try:
        for pattern in FOLDERS:
            for place in folder.glob(pattern) if pattern else [folder]:
                remove_stale(place)
        for log in (folder / LOGS).glob("*.log"):
            if log.is_file() and log.stat().st_size == 0:
                log.unlink()
    except OSError as error:
        logger.warning("leftovers of a sweep stay in %s: %s", folder, error)
