"""The cache of decoded images that the runs of a sweep use in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class TensorCache(Protocol):
    """A place for tensors that outlives one run (the benchmark gives it to every run of a sweep)."""

    def __contains__(self, key: str) -> bool:
        """Whether something lies under ``key``."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what lies under ``key``, or None."""

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep ``tensors`` under ``key``, if there is room."""


def content_key(preprocessing: object, contents: Iterable[str]) -> str:
    """Return the key of what a preprocessing makes of images whose contents have these hashes."""
    digest = hashlib.sha256(repr(preprocessing).encode())
    for content in contents:
        digest.update(f"{content}\n".encode())
    return digest.hexdigest()
