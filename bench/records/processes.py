"""Processes of this system: what tells them from others, and whether one lives."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")


@cache
def system() -> str:
    """What tells this system's processes from those of other machines, other boots and other containers."""
    try:
        return f"{BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()


def began(pid: int) -> str:
    """When a process of this system was started, in the kernel's count; empty where it does not tell."""
    told = _told(pid)
    return told[19] if len(told) > 19 else ""


def is_alive(pid: int) -> bool:
    """Whether a process of this system has that number and has not ended.

    One that has ended keeps its number until its parent asks for its status; some parents never do, such as
    the first process of many containers.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter: no number of a process at all
        return False
    except PermissionError:  # of another user
        pass
    return _told(pid)[:1] not in (["Z"], ["X"])


def _told(pid: int) -> list[str]:
    """What the kernel tells of a process behind its name, its state first; nothing where it does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
