"""Batches on their way to the device that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def wants_pinned(device: torch.device) -> bool:
    """Whether batches for ``device`` should lie in pinned memory, which a GPU reads without the processor."""
    return device.type == "cuda"


def moved(batch: Tensor, device: torch.device) -> Tensor:
    """Return ``batch`` on ``device``.

    A GPU copies from pinned memory, and what computes there waits for the copy; this process does not.
    """
    if not wants_pinned(device) or batch.device.type != "cpu":
        return batch.to(device)
    pinned = batch if batch.is_pinned() else batch.pin_memory()
    return pinned.to(device, non_blocking=True)
