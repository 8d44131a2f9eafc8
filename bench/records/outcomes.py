"""Per-image outcomes as bytes."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from numpy.typing import NDArray

Outcomes = NDArray[np.bool_]


def pack(outcomes: Outcomes) -> bytes:
    """The bytes of a small npz archive that depend on the outcomes alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("bits", np.packbits(outcomes)), ("n", np.array(len(outcomes)))):
            # A fixed date: np.savez would write the present one, and the checksum would change.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(entry, content.getvalue())
    return buffer.getvalue()


def unpack(content: bytes) -> Outcomes:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return np.unpackbits(archive["bits"])[: int(archive["n"])].astype(bool)
