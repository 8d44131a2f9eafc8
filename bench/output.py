"""The output folder: can it be written, and how are logs named."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bench.errors import BenchError

PROBE_BYTES = 1 << 16


def prepare(folder: Path) -> None:
    """Create ``folder`` and make sure that a file can be written there.

    Raises:
        BenchError: no permission, no space, or a file stands in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise BenchError(
            f"cannot write to the output folder {folder}: {error.strerror or error}"
        ) from error


def log_file(folder: Path, run_id: str) -> Path:
    """Where the process of a run prints; kept only if something was printed."""
    return folder / "logs" / f"{run_id}.log"
