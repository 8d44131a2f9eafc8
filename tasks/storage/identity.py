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
        TaskError: the file is not there, or cannot be read.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error})") from error


def bytes_id(content: bytes) -> str:
    """Return ``sha256:...`` of bytes: what `file_id` returns of a file that holds them."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def require_file(path: Path) -> None:
    """Raise `TaskError` unless ``path`` is a file."""
    if path.is_dir():
        raise TaskError(f"{path}: is a folder; give the checkpoint file in it")
    if not path.is_file():
        raise TaskError(
            f"{path}: no such checkpoint file; give one that is there, or leave out --checkpoint for the "
            "weights that the model comes with"
        )


def arrays_id(*arrays: NDArray[Any]) -> str:
    """Return ``sha256:...`` of the bytes of arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()}"
