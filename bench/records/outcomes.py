"""Per-image outcomes of an evaluation, and its figures on drawn image sets, as bytes."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.bench.errors import BenchError

Outcomes = NDArray[np.bool_]

Replicates = NDArray[np.float32]
"""A metric in percent on image sets drawn with replacement, [R]; the same draws for all runs on the data."""

LONGEST = 1 << 26
"""Bytes of the longest array that is unpacked: the outcomes of half a billion images."""

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What `zipfile` and numpy raise of archives that were not made by `pack`."""


class DamagedOutcomes(BenchError):
    """Bytes that should be outcomes are none; the text says what is wrong."""


def pack(outcomes: Outcomes, replicates: Replicates | None = None) -> bytes:
    """The bytes of a small npz archive that depend on the arguments alone."""
    arrays = {"bits": np.packbits(outcomes), "n": np.array(len(outcomes))}
    if replicates is not None:
        arrays["replicates"] = np.asarray(replicates, dtype="<f4")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            # A fixed date: np.savez would write the present one, and the checksum would change.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(entry, content.getvalue())
    return buffer.getvalue()


def unpack(content: bytes) -> Outcomes:
    """Inverse of `pack`.

    Raises:
        DamagedOutcomes: an archive of other things, or none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            bits, n = _array(archive, "bits.npy"), _array(archive, "n.npy")
    except _DAMAGE as error:
        raise DamagedOutcomes(f"no archive of outcomes ({error})") from error
    if bits.dtype != np.uint8 or bits.ndim != 1 or n.shape != () or n.dtype.kind not in "iu":
        raise DamagedOutcomes("an archive of other arrays than outcomes")
    if len(bits) != (int(n) + 7) // 8:
        raise DamagedOutcomes(f"{len(bits)} bytes are not the outcomes of {int(n)} images")
    return np.unpackbits(bits)[: int(n)].astype(bool)


def unpack_replicates(content: bytes) -> Replicates | None:
    """Return the replicates that `pack` was given; None: it was given none.

    Raises:
        DamagedOutcomes: an archive of other things, or none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if "replicates.npy" not in archive.namelist():
                return None
            found = _array(archive, "replicates.npy")
    except _DAMAGE as error:
        raise DamagedOutcomes(f"no archive of outcomes ({error})") from error
    if found.dtype != np.dtype("<f4") or found.ndim != 1 or not np.isfinite(found).all():
        raise DamagedOutcomes("its replicates are no finite numbers of four bytes in a row")
    return found


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    size = archive.getinfo(name).file_size
    if size > LONGEST:
        raise ValueError(f"{name} has {size} bytes")
    array: NDArray[Any] = np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
    return array
