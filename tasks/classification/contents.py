"""Identities of sets of images, by content, and the hashes that they are made of."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from vit_ptq_bench.tasks import storage
from vit_ptq_bench.tasks.storage.contents import Stored

PART = 1024
"""Files between two looks at the clock."""

PATIENCE_SECONDS = 5.0
"""Waiting that needs no word."""

_LOGGER = logging.getLogger(__name__)


class Contents:
    """SHA-256 of files, each as it was when it was first asked for: what was planned is what is read."""

    def __init__(self) -> None:
        self._known: dict[Stored, str] = {}

    def of(self, paths: Sequence[Stored]) -> list[str]:
        """Return the hash of each image; those that nobody has hashed before are read.

        Raises:
            TaskError: a file is gone or cannot be read.
        """
        due = [path for path in dict.fromkeys(paths) if path not in self._known]
        next_word = time.monotonic() + PATIENCE_SECONDS
        for start in range(0, len(due), PART):
            part = due[start : start + PART]
            self._known.update(zip(part, storage.content_ids(part), strict=True))
            if time.monotonic() > next_word:
                next_word += 6 * PATIENCE_SECONDS
                _LOGGER.warning(
                    "reading the images in %s to know their content, once: %d of %d",
                    _folder(part[0]),
                    start + len(part),
                    len(due),
                )
        return [self._known[path] for path in paths]


def _folder(image: Stored) -> Path:
    """Where an image lies, for people: class folders are too many to be named."""
    return image.parent.parent if isinstance(image, Path) else image.file.parent


def contents_id(contents: Sequence[str], labels: Sequence[int] = (), names: str = "") -> str:
    """Return ``sha256:...`` over contents of images in order, their labels, and an identity of names."""
    digest = hashlib.sha256("\n".join(contents).encode())
    digest.update(f"\0{' '.join(map(str, labels))}\0{names}".encode())
    return f"sha256:{digest.hexdigest()}"


def names_id(paths: Sequence[Path], root: Path) -> str:
    """Return a hash over the paths below ``root``, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.relative_to(root)) + b"\0")
    return digest.hexdigest()
