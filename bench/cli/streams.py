"""Standard output and error that never stop a command: any encoding, any reader, or none at all."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

PLAIN = {"≈": "~", "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "→": "->", "…": "...", "–": "-"}
"""What stands for a character that an encoding does not have; others are escaped."""

HANDLER = "vit_ptq_bench.plain"


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handler of encoding errors: `PLAIN`, else the character's escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if text[0] in PLAIN:
        return PLAIN[text[0]], error.start + 1
    return codecs.backslashreplace_errors(error)


class PatientFile(io.FileIO):
    """A file descriptor to write to that takes everything once nobody reads it any more.

    What a command does must not depend on whether somebody reads what it prints: ``bench run x | head``
    ends with its records and leaderboard.

    Attributes:
        problem: why something was not written, in words; None as long as all was, or the reader has gone.
    """

    problem: str | None = None

    def write(self, content: object) -> int:
        """Write bytes; where that is impossible, now or ever, write them nowhere."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except BrokenPipeError:  # piped into `head`
            pass
        except OSError as error:  # a full disk
            self.problem = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(content)  # type: ignore[arg-type]


def prepare() -> list[PatientFile]:
    """Make the process's own output and error stream safe to print to; return their files.

    A stream that somebody has replaced (a test, a notebook) stays as it is.
    """
    codecs.register_error(HANDLER, plain)
    _fill_missing()
    files = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        stream.flush()
        file = PatientFile(stream.fileno(), "w", closefd=False)
        setattr(sys, name, _text_stream(file, stream))
        files.append(file)
    return files


def _text_stream(file: PatientFile, old: io.TextIOWrapper) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=old.encoding,
        errors=HANDLER,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def _fill_missing() -> None:
    """Open what was closed when the process began (``>&-``), so that no other file gets its number."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "r" if descriptor == 0 else "w"
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def finish(files: list[PatientFile]) -> str | None:
    """Write out what is still waiting; return why something was lost, or None."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    return next((file.problem for file in files if file.problem is not None), None)
