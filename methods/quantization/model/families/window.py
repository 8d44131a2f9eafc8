"""Attention within windows, as Swin has it in every library."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention


class QuantWindowAttention(QuantSelfAttention):
    """Window attention of timm's and mmdet's Swin with its two products made explicit."""

    relative_position_index: Tensor

    def __init__(self, attention: Any, name: str, table: BitTable) -> None:
        super().__init__(attention, name, table)
        self.relative_position_bias_table: Tensor = attention.relative_position_bias_table
        self.register_buffer(
            "relative_position_index", attention.relative_position_index, persistent=False
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: [windows * B, N, C].
            mask: None, or additive mask [windows, N, N] of the shifted windows.
        """
        query, key, value = self.split_heads(x)
        logits: Tensor = self.scores(query * self.scale, key) + self._position_bias()
        return self.project(self.attended(masked(logits, mask), value))

    def _position_bias(self) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        area = self.relative_position_index.shape[0]
        return bias.view(area, area, -1).permute(2, 0, 1).contiguous()


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Add the mask of shifted windows.

    Args:
        logits: [windows * B, heads, N, N].
        mask: None, or [windows, N, N].
    """
    if mask is None:
        return logits
    images = logits.view(-1, mask.shape[0], *logits.shape[1:]) + mask[None, :, None]
    return images.view(logits.shape)


def pad_to_windows(x: Tensor, size: tuple[int, int], value: Tensor) -> Tensor:
    """Add rows below and columns on the right of a map, up to whole windows.

    Args:
        x: [B, H, W, C].
        size: height and width of a window.
        value: of the new tokens, [C].
    """
    below, right = -x.shape[1] % size[0], -x.shape[2] % size[1]
    if not below and not right:
        return x
    padded = F.pad(x, (0, 0, 0, right, 0, below))
    if below:
        padded[:, x.shape[1] :] = value
    if right:
        padded[:, : x.shape[1], x.shape[2] :] = value
    return padded
