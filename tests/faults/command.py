"""The command line in this process: its exit status, and what it prints through strict streams."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vit_ptq_bench.bench.cli import main


@dataclass(frozen=True)
class Said:
    """What a command said.

    Attributes:
        status: its exit status.
        out: on its standard output.
        error: on its standard error.
    """

    status: int
    out: str
    error: str


def bench(arguments: Sequence[str]) -> Said:
    """Run one command; what it raises (but for the exits of argparse) is raised here too."""
    with _stream() as out, _stream() as error:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                status = main(list(arguments))
            except SystemExit as exit_:
                status = exit_.code if isinstance(exit_.code, int) else 1
        return Said(status, _text(out), _text(error))


@contextlib.contextmanager
def _stream() -> Iterator[io.TextIOWrapper]:
    with io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") as stream:
        yield stream


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
