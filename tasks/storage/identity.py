"""Identities of weights and data: hashes over the bytes of files and arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.tasks.errors import TaskError


def file_id(path: Path) -> str:
    """Return ``sha256:...`` of a file's bytes.

    Raises:
        TaskError: the file is not there.
    """
    require_file(path)
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def require_file(path: Path) -> None:
    """Raise `TaskError` unless ``path`` is a file."""
    if not path.is_file():
        raise TaskError(f"{path}: no such checkpoint file")


def arrays_id(*arrays: NDArray[Any]) -> str:
    """Return ``sha256:...`` of the bytes of arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()}"
