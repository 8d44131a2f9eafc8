"""How a run can fail, and what its record says of it."""

from __future__ import annotations

import errno
import os
import re
import traceback
from typing import Any

from vit_ptq_bench.methods.quantization.calibration.memory import is_out_of_memory

TRACEBACK_LINES = 40


class Skip(Exception):
    """The method does not support this model or table; the text is the reason."""


class GateMissed(Exception):
    """The full-precision model does not reach the figure it is known for."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, a quota of the user is, or files may not become so large."""


def lack_of_room(error: Exception) -> str | None:
    """Return why a file could not be written, in the system's words, if that is for want of room.

    Safetensors has an error of its own, which tells the system's number in its text alone.
    """
    found = re.search(r"\(os error ([0-9]+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return os.strerror(number) if number in NO_ROOM else None


def described(error: Exception) -> tuple[str, dict[str, Any]]:
    """Return status and error of a record for an exception."""
    if isinstance(error, Skip):
        return "skipped", {"type": "unsupported", "message": str(error)}
    if isinstance(error, GateMissed):
        return "failed", {"type": "full-precision gate", "message": str(error)}
    lines = traceback.format_exception(error)
    return "oom" if is_out_of_memory(error) else "failed", {
        "type": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "traceback": "".join(lines).splitlines()[-TRACEBACK_LINES:],
    }
