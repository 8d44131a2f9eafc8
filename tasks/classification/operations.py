"""How much a model computes per image, found without computing it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(
    build: Callable[[], nn.Module], size: tuple[int, int, int] | None = None
) -> int:
    """Return the multiply-accumulates of one image through a model: products of matrices and convolutions.

    The model and the image have shapes and no values (torch's device ``meta``).

    Args:
        build: returns the model.
        size: of an image, [channels, height, width]; None: as timm's configuration of the model says.
    """
    with torch.device("meta"):
        module = build().eval()
        image = torch.empty(1, *(size or module.default_cfg["input_size"]))  # type: ignore[index]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    return int(counter.get_total_flops()) // 2
