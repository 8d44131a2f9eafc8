"""The log files of runs, and the warnings of methods while they calibrate."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

LOGS = "logs"
"""The folder for them, in the output."""


def log_file(folder: Path, run_id: str) -> Path:
    """Where the process of a run prints; kept only if something was printed."""
    return folder / LOGS / f"{run_id}.log"


MOST = 50
"""Warnings kept of one run; a method may warn of every block."""

LOGGER = "vit_ptq_bench.methods"


class _Collector(logging.StreamHandler[TextIO]):
    """Prints as logging would without it, and keeps the text."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.levelno >= logging.WARNING and len(self._texts) < MOST:
            self._texts.append(record.getMessage())


@contextmanager
def collected_warnings(texts: list[str]) -> Iterator[None]:
    """Collect what is logged as a warning under ``methods``, in order, at most `MOST`.

    What is logged for information is printed only: it ends in the run's log file.
    """
    handler = _Collector(texts)
    logger = logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


UNREPEATABLE = "does not have a deterministic implementation"
"""Part of torch's warning, which names the operation before it."""


@contextmanager
def collected_unrepeatable(texts: list[str]) -> Iterator[None]:
    """Collect the operations that torch warns of for want of a deterministic form, each once."""
    show = warnings.showwarning

    def noting(message: Warning | str, *rest: Any, **more: Any) -> None:
        operation, found, _ = str(message).partition(f" {UNREPEATABLE}")
        text = f"{operation} {UNREPEATABLE} on this device: figures may differ from run to run"
        if found and text not in texts:
            texts.append(text)
        show(message, *rest, **more)

    warnings.showwarning = noting
    try:
        yield
    finally:
        warnings.showwarning = show
