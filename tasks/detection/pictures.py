"""Image files as mmdet reads them: upright, at most so large, and whole or not at all.

mmdet decodes with OpenCV, which turns an image upright by its EXIF orientation. What only has to know sizes
asks for them here, of the header.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vit_ptq_bench.tasks.errors import TaskError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of the image files that are looked for in a folder."""

MOST_PIXELS = 178_956_970
"""Pillow's limit, beyond which a small file is taken for an attempt to fill the memory."""

ORIENTATION = 0x0112
"""EXIF's tag; from 5 on the image lies on its side."""

TURNED_BY_ALL = ("JPEG", "MPO")
"""Formats whose orientation every release of OpenCV heeds; of others only some do."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        width: in pixels, upright.
        height: in pixels, upright.
        orientation: EXIF's, 1 to 8; 1: as it is stored.
        certain: whether every decoder turns it upright; if not, width and height may be swapped.
    """

    width: int
    height: int
    orientation: int
    certain: bool

    def fits(self, width: int, height: int) -> bool:
        """Whether an image that is read from the file can have this size."""
        sizes = [(self.width, self.height)]
        if not self.certain:
            sizes.append((self.height, self.width))
        return (width, height) in sizes


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; hidden files (``._a.jpg``) are none."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def read_header(path: Path) -> Header:
    """Return size and orientation of an image file, without decoding it.

    Raises:
        TaskError: there is none, it is no image, or has more than `MOST_PIXELS`.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such image file")
    with _named(path), Image.open(path) as image:
        width, height = image.size
        orientation = _orientation(image)
        sideways = (
            orientation >= 5 and image.format != "TIFF"
        )  # of which Pillow swaps the size itself
        if sideways:
            width, height = height, width
        certain = orientation < 5 or image.format in TURNED_BY_ALL
    return Header(width, height, orientation, certain)


def require_whole(path: Path, content: bytes) -> None:
    """Refuse an image of which a part is missing or damaged: OpenCV may fill it with grey instead.

    Args:
        path: for the error.
        content: bytes of the file.

    Raises:
        TaskError: it cannot be decoded to its end.
    """
    with _named(path), Image.open(io.BytesIO(content)) as image:
        image.load()


def missing_files(paths: Sequence[Path]) -> list[Path]:
    """Return those that are no files."""
    return [path for path in paths if not path.is_file()]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of a decoder, with the file's name; large images that are under the limit are no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:  # each of Pillow's formats raises its own kinds on damaged files
            raise TaskError(f"{path}: cannot be read as an image ({_words(error)})") from error


def _words(error: Exception) -> str:
    return str(error).replace("<_io.BytesIO object", "<content") or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 where there is none, or none that can be read."""
    content = image.info.get("exif")
    if image.format == "TIFF":
        found = image.getexif().get(ORIENTATION, 1)
    elif not isinstance(content, bytes):
        return 1
    else:
        exif = Image.Exif()
        try:
            exif.load(content)
            found = exif.get(ORIENTATION, 1)
        except (SyntaxError, ValueError, KeyError, OSError, EOFError, struct.error):
            return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
