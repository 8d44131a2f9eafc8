"""Image files decoded as timm reads them, or refused by name; without torch."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image, UnidentifiedImageError

from vit_ptq_bench.tasks.errors import TaskError

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are tried, whatever the suffix says; some of PIL's others start programs."""

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

DAMAGED = (
    OSError,  # among them PIL's own for a format that it does not know, and for truncated files
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""All that PIL's decoders raise when a file is not what it says."""

MOST_LENGTHENED = 500
"""Largest ratio of the sides: the shorter one is resized to some hundred pixels, the longer one with it."""


def decoded(path: object, content: bytes) -> Image.Image:
    """Return an image in RGB as timm reads it: the first frame, not turned, whatever the suffix says.

    Args:
        path: the file, or the piece of a file, for errors.
        content: its bytes.

    Raises:
        TaskError: damaged, no image, so large or so narrow that it fills the memory, or of more than 8 bits
            per pixel and one channel, which PIL would clip.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                _require_usual(path, image)
                return image.convert("RGB")
    except TaskError:
        raise
    except BOMBS as error:
        raise TaskError(f"{path}: too large an image ({error}); leave it out") from error
    except DAMAGED as error:
        fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            fault = "of no known format"
        raise TaskError(f"{path}: corrupt or unreadable image ({fault}); fetch it again") from error


def _formats() -> list[str]:
    """Those of `FORMATS` that this PIL was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _require_usual(path: object, image: Image.Image) -> None:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise TaskError(
            f"{path}: pixels of more than 8 bits (mode {image.mode}), which would be clipped; convert the "
            "image to 8 bits"
        )
    short, long = sorted(image.size)
    if long > MOST_LENGTHENED * short:
        raise TaskError(
            f"{path}: an image of {image.width} x {image.height} pixels is too narrow to be resized"
        )
