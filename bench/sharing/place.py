"""Processes that work on a folder: which one, on which machine, and whether it is known to have ended."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vit_ptq_bench.bench.records.processes import began, is_alive, system


@dataclass(frozen=True)
class Place:
    """A process.

    Attributes:
        host: name of its machine, for people: containers on different machines may share one.
        pid: its number there.
        system: the boot of a kernel and a space of process numbers, as no other machine or container has it.
        began: when it was started, in the kernel's own count: numbers of processes come again.
    """

    host: str
    pid: int
    system: str
    began: str

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Place:
        """Return what `asdict` has written.

        Raises:
            KeyError, TypeError, ValueError: ``values`` are something else.
        """
        return cls(
            host=str(values["host"]),
            pid=int(values["pid"]),
            system=str(values["system"]),
            began=str(values["began"]),
        )

    def write(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def has_ended(self) -> bool:
        """Whether the process is known to be gone; of one elsewhere that can't be known from here."""
        if self.system != system():
            return False
        return not is_alive(self.pid) or self.began != began(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def here() -> Place:
    """Return this process."""
    pid = os.getpid()
    return Place(platform.node() or "this machine", pid, system(), began(pid))
