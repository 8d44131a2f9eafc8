"""Attention within windows, as Swin has it in every library."""

from typing import Any

from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.layers import context_product, scores_product


class QuantWindowAttention(nn.Module):
    """Window attention of timm's and mmdet's Swin with its two products made explicit.

    Takes over the submodules (and so the parameter names) of the original.
    """

    relative_position_index: Tensor

    def __init__(self, attention: Any, name: str, table: BitTable) -> None:
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.relative_position_bias_table = attention.relative_position_bias_table
        self.register_buffer(
            "relative_position_index", attention.relative_position_index, persistent=False
        )
        self.qkv, self.proj = attention.qkv, attention.proj
        self.attn_drop, self.proj_drop = attention.attn_drop, attention.proj_drop
        self.scores = scores_product(name, table)
        self.context = context_product(name, table)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: [windows * B, N, C].
            mask: None, or additive mask [windows, N, N] of the shifted windows.
        """
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.scores(query * self.scale, key) + self._position_bias()
        if mask is not None:
            windows = mask.shape[0]
            logits = logits.view(-1, windows, self.num_heads, tokens, tokens) + mask[None, :, None]
            logits = logits.view(-1, self.num_heads, tokens, tokens)
        attention = self.attn_drop(logits.softmax(dim=-1))
        x = self.context(attention, value).transpose(1, 2).reshape(batch, tokens, -1)
        return self.proj_drop(self.proj(x))

    def _position_bias(self) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        area = self.relative_position_index.shape[0]
        return bias.view(area, area, -1).permute(2, 0, 1).contiguous()
