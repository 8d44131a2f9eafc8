"""Permissions of files that libraries write for one user alone."""

from __future__ import annotations

from pathlib import Path


def make_ordinary(path: Path) -> None:
    """Give a file the permissions that any new file of this user has in its folder.

    safetensors and `tempfile` make files that nobody else can read, whatever the umask says.

    Raises:
        OSError: nothing can be written beside the file.
    """
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    try:
        path.chmod(probe.stat().st_mode)
    finally:
        probe.unlink()
