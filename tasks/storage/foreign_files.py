"""Files that should be checkpoints and are none, told from their first bytes."""

from __future__ import annotations

import io
import zipfile

MAGIC = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights: fetch them with `git lfs pull`",
    ),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras): convert its weights to safetensors"),
    (b"GGUF", "is a GGUF file: convert its weights to safetensors"),
    (b"\x93NUMPY", "is a NumPy array, not a state dict: save the weights as safetensors"),
)
"""First bytes of a kind of file -> what it is, and what to do."""

TAR_MAGIC = (257, b"ustar")

HTML = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")

TEXT_SAMPLE = 512
"""Bytes that are looked at to tell text."""

SAFETENSORS_HEADER = 8
"""Bytes before the header of a safetensors file: its length."""


def foreign_kind(content: bytes) -> str | None:
    """Return what a file that is no checkpoint is, as the rest of a sentence after its name, or None."""
    if not content:
        return "is empty (0 bytes), perhaps truncated: fetch it again"
    for magic, words in MAGIC:
        if content.startswith(magic):
            return words
    start, magic = TAR_MAGIC
    if content[start : start + len(magic)] == magic:
        return "is a tar archive: unpack it first"
    if content[:TEXT_SAMPLE].lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(HTML):
        return "is a web page (HTML), not weights: the download went wrong (a login, a licence to accept)"
    if is_safetensors(content):
        return None
    sample = content[:TEXT_SAMPLE]
    if sample.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in sample):
        return f"is text ({sample[:30].decode('ascii')!r} ...), not weights"
    return None


def is_safetensors(content: bytes) -> bool:
    """Whether a file has the form of safetensors, whole or cut: a length, then a JSON object."""
    return content[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{" and not content.startswith(
        b"{"
    )


def is_zip(content: bytes) -> bool:
    """Whether a file is a zip archive, as torch writes checkpoints."""
    return content.startswith(b"PK\x03\x04")


def foreign_archive(archive: zipfile.ZipFile) -> str | None:
    """Return what a zip archive is if torch's `save` did not write it, in words as of `foreign_kind`."""
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return (
            "is a TorchScript archive, a program with weights: save those alone, "
            "torch.save(torch.jit.load(FILE).state_dict(), ...)"
        )
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return "is a NumPy archive (JAX or Flax weights): convert it to safetensors"
    held = ", ".join(names[:3]) or "nothing"
    return f"is a zip archive that torch did not write (it holds {held}): unpack it first"


def opened(content: bytes) -> zipfile.ZipFile:
    """Open an archive that lies in memory; raises what `zipfile` raises."""
    return zipfile.ZipFile(io.BytesIO(content))
