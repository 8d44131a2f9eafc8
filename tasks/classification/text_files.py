"""Text files that people write with many programs: their lines, whatever the encoding and the line ends."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from vit_ptq_bench.tasks.errors import TaskError

MOST_BYTES = 64 * 2**20
"""No list of labels is as large as this: one line for each of ImageNet's training images is 60 MB."""

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order mark -> encoding; the mark of UTF-32 begins with the one of UTF-16."""


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a text file, stripped; line ``i`` of the file is entry ``i - 1``.

    UTF-8 with or without byte order mark, UTF-16 and UTF-32; line ends of Unix, Windows and old Macs.

    Args:
        path: the file.
        what: what it is, for the error.

    Raises:
        TaskError: there is no such file, or it is no text.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such {what}")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TaskError(f"{path}: cannot read the {what} ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise TaskError(f"{path}: larger than any {what} ({MOST_BYTES // 2**20} MB at most)")
    return [line.strip() for line in re.split(r"\r\n|\r|\n", _decoded(content, path, what))]


def _decoded(content: bytes, path: Path, what: str) -> str:
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or _unmarked(content))
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}: cannot read the {what} ({error}); save it as text in UTF-8"
        ) from error
    if "\0" in text:
        raise TaskError(f"{path}: cannot read the {what}, it is no text; save it as text in UTF-8")
    return text


def _unmarked(content: bytes) -> str:
    """ASCII in UTF-16 has a zero in every other byte, text in UTF-8 has none."""
    start = content[:256]
    if len(start) > 1 and not any(start[1::2]) and all(start[::2]):
        return "utf-16-le"
    if len(start) > 1 and not any(start[::2]) and all(start[1::2]):
        return "utf-16-be"
    return "utf-8"
