"""The cache of full-precision results, which several calibrations need and only one has to compute."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor


class TensorCache(Protocol):
    """A place for tensors that outlives one calibration (the benchmark gives one to each run of a sweep)."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what lies under ``key``, or None; laid out in memory as it was."""

    def put(self, key: str, tensors: Mapping[str, Tensor], seconds: float = 0.0) -> None:
        """Keep ``tensors``; ``seconds`` is what making them took."""


def lies_channels_last(x: Tensor) -> bool:
    """Whether a tensor [B, C, H, W] lies as [B, H, W, C] in memory, and not also as its shape says."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def fingerprint(words: Iterable[object], tensors: Iterable[Tensor]) -> str:
    """Return a hash over words and the bytes of tensors: the key of all that follows from them.

    The threads count too: they decide the order in which a product is summed.
    """
    digest = hashlib.sha256(repr((torch.get_num_threads(), *words)).encode())
    for tensor in tensors:
        value = tensor.detach().contiguous().cpu()
        layout = lies_channels_last(tensor)
        digest.update(repr((tuple(value.shape), value.dtype, str(tensor.device), layout)).encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
