"""The records of a revision of the git repository that they lie in."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vit_ptq_bench.bench.errors import BenchError

SECONDS = 120
"""Of a git command."""


@contextmanager
def folder_of(text: str, results: Path) -> Iterator[Path | None]:
    """Give the folder of records that a user names, for as long as it is needed; None: it is none.

    Args:
        text: a folder; or a revision (a branch, tag or commit), with ``:FOLDER`` behind it where that is
            another one than ``results``, relative to the repository.
        results: the folder that a revision is asked for; its repository is asked.

    Raises:
        BenchError: the revision has no such folder.
    """
    if Path(text).is_dir():
        yield Path(text)
        return
    revision, _, inner = text.partition(":")
    root = _git(results, "rev-parse", "--show-toplevel")
    commit = root and _git(results, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not root or not commit:
        yield None
        return
    top = Path(root.decode().strip())
    folder = inner or results.resolve().relative_to(top).as_posix()
    with TemporaryDirectory() as temporary:
        _extract(top, commit.decode().strip(), folder, Path(temporary))
        yield Path(temporary) / folder


def _extract(top: Path, commit: str, folder: str, target: Path) -> None:
    """Write a folder of a commit under ``target``: files alone, none outside of it."""
    archive = _git(top, "archive", "--format=tar", commit, "--", folder)
    if archive is None:
        raise BenchError(f"revision {commit[:10]} has no folder {folder}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails or is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
