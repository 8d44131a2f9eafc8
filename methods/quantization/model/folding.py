"""Moving scales and shifts from the source of an activation into the linear layer that reads it."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.model.structure import NormLink, ValueLink


@torch.no_grad()
def fold_into_reader(
    link: NormLink, divisor: Tensor, shift: Tensor, multiplier: Tensor | None = None
) -> None:
    """Make the LayerNorm give ``(x + shift) / divisor`` and the reader undo it.

    gamma' = gamma / r, beta' = (beta + t) / r, W'[:, c] = r_c W[:, c], b' = b - W t, so the
    full-precision function stays the same (RepQ-ViT, section 3.2; SmoothQuant is the case t = 0).

    Args:
        link: LayerNorm and reader.
        divisor: r, shape [C], not zero.
        shift: t, shape [C].
        multiplier: of the reader's columns if not the divisor; the function then changes.
    """
    _undo_in_reader(link, divisor if multiplier is None else multiplier, shift)
    link.norm.weight.div_(divisor)
    link.norm.bias.add_(shift).div_(divisor)
    if link.padding is not None:
        link.padding.value.add_(shift).div_(divisor)


@torch.no_grad()
def fold_into_values(
    link: ValueLink, divisor: Tensor, shift: Tensor, multiplier: Tensor | None = None
) -> None:
    """Make the values ``(v + shift) / divisor`` and the projection behind the attention undo it.

    Exact because the rows of the attention map sum to 1 (LRQuant; with a quantized map they do not, so
    the shift must be zero then). Arguments as in `fold_into_reader`, [C] over heads and their channels.
    """
    _undo_in_reader(link, divisor if multiplier is None else multiplier, shift)
    bias = link.source.ensure_bias()
    size = len(divisor)
    link.source.weight[-size:].div_(divisor[:, None])
    bias[-size:].add_(shift).div_(divisor)


def _undo_in_reader(link: NormLink | ValueLink, multiplier: Tensor, shift: Tensor) -> None:
    bias = link.reader.ensure_bias()
    bias.sub_(link.reader.weight @ shift)
    link.reader.weight.mul_(multiplier)
