"""The state of the source tree that a sweep runs from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def source_state() -> dict[str, Any]:
    """Commit of the checkout this code runs from and whether it was changed; None outside one."""
    if not (PROJECT / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", "bench", "methods", "tasks")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
