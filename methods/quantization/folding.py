"""Moving scales and shifts from a LayerNorm into the linear layer that reads it."""

import torch
from torch import Tensor

from methods.quantization.model import NormLink


@torch.no_grad()
def fold_into_reader(link: NormLink, divisor: Tensor, shift: Tensor) -> None:
    """Make the LayerNorm give ``(x + shift) / divisor`` and the reader undo it.

    gamma' = gamma / r, beta' = (beta + t) / r, W'[:, c] = r_c W[:, c], b' = b - W t, so the
    full-precision function stays the same (RepQ-ViT, section 3.2; SmoothQuant is the case t = 0).

    Args:
        link: LayerNorm and reader.
        divisor: r, shape [C], not zero.
        shift: t, shape [C].
    """
    norm, reader = link.norm, link.reader
    bias = reader.ensure_bias()
    bias.sub_(reader.weight @ shift)
    reader.weight.mul_(divisor)
    norm.weight.div_(divisor)
    norm.bias.add_(shift).div_(divisor)
