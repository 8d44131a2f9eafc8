"""Reading weights from files, without running anything that a file contains.

What a file is follows from its content, not from the end of its name. Its bytes are read once: what is hashed
is what is parsed.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.foreign_files import (
    foreign_archive,
    foreign_kind,
    is_safetensors,
    is_zip,
    opened,
)
from vit_ptq_bench.tasks.storage.identity import bytes_id, require_file
from vit_ptq_bench.tasks.storage.state_dicts import best_state_dict

DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What torch's unpickler and the zip archives raise on bytes that nobody wrote on purpose."""

HARMLESS: list[Any] = [argparse.Namespace]
"""Classes that training scripts keep beside their weights and that are data alone."""

EXPANSION = 16
"""How much larger than a checkpoint its unpacked content may be; torch itself does not compress."""

REFUSED = re.compile(
    r"GLOBAL \S+|Unsupported class|unrecognized function|instantiate", re.IGNORECASE
)
"""What torch says when a pickle wants more than data."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        identity: ``sha256:...`` of the bytes that ``data`` was made from.
        data: tensors by name, or whatever a training script keeps around them.
    """

    path: Path
    identity: str
    data: object


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file, or what `torch.save` wrote.

    Raises:
        TaskError: missing, empty, truncated or damaged, of another kind (which is named), or a pickle that
            wants to run code.
    """
    require_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise TaskError(f"{path}: is larger than the memory that is free") from error
    kind = foreign_kind(content)
    if kind is not None:
        raise TaskError(f"{path}: {kind}")
    read = _read_safetensors if is_safetensors(content) else _read_torch
    return Checkpoint(path, bytes_id(content), read(path, content))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint as float32, whatever model it belongs to.

    Raises:
        TaskError: see `read_checkpoint`; or the file holds none, or several.
    """
    state, _ = best_state_dict(read_checkpoint(path).data, None, str(path))
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def _read_safetensors(path: Path, content: bytes) -> object:
    try:
        return load_safetensors(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch does not have
        raise TaskError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, fetch it again"
        ) from error


def _read_torch(path: Path, content: bytes) -> object:
    try:
        sizes = _archived_sizes(path, content) if is_zip(content) else None
        with torch.serialization.safe_globals(HARMLESS):
            data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if sizes is not None:
            _check_storages(data, sizes)
    except DAMAGE as error:
        raise _unreadable(path, error) from error
    return data


def _unreadable(path: Path, error: Exception) -> TaskError:
    if isinstance(error, TaskError):
        return error
    text = str(error).rpartition("error: ")[2].strip() or type(error).__name__
    wanted = REFUSED.search(text) if isinstance(error, pickle.UnpicklingError) else None
    if wanted is not None:
        return TaskError(
            f"{path}: the file holds more than tensors ({wanted[0]}), and loading it would run code from it; "
            f"if you trust it, convert it: bench convert checkpoint {path} "
            f"{path.with_suffix('.safetensors').name} --trust"
        )
    reason = " ".join(text.split())[:120]
    return TaskError(
        f"{path}: not a readable checkpoint ({reason}); it may be truncated, fetch it again"
    )


def _archived_sizes(path: Path, content: bytes) -> Counter[int]:
    """Sizes of the storages in torch's archive, once it is sound: torch itself checks no checksum.

    Raises:
        TaskError: another kind of archive, or one that unpacks to far more than it is.
    """
    with opened(content) as archive:
        kind = foreign_archive(archive)
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if kind is None and total > EXPANSION * len(content):
            kind = f"unpacks from {len(content)} to {total} bytes, which no weights do"
        if kind is not None:
            raise TaskError(f"{path}: {kind}")
        wrong = [entry.filename for entry in entries if not _is_sound(archive, entry)]
        # torch can be told to write no checksums; then none is right.
        if wrong and len(wrong) < len([entry for entry in entries if entry.file_size]):
            raise TaskError(
                f"{path}: {len(wrong)} of its {len(entries)} parts are damaged ({wrong[0]}: wrong checksum); "
                "fetch it again"
            )
    return Counter(entry.file_size for entry in entries if "/data/" in entry.filename)


def _is_sound(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as part:
            while part.read(1 << 20):
                pass
    except zipfile.BadZipFile as error:
        if "CRC" not in str(error):
            raise
        return False
    return True


def _check_storages(data: object, sizes: Counter[int]) -> None:
    """Refuse a storage of another size than its part of the archive: it would show what else is in memory."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in _tensors(data))
        if storage.nbytes()
    }
    if Counter(storages.values()) - sizes:
        raise ValueError("a tensor claims another size than its data have")


def _tensors(data: object) -> Iterator[Tensor]:
    """All dense tensors in nested containers; each container once, however often it occurs."""
    seen: set[int] = set()
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and value.device.type == "cpu":
                yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
