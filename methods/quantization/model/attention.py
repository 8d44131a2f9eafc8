"""Multi-head self-attention with its two matrix products made explicit, so that they can be quantized."""

from typing import Any

from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul


class QuantSelfAttention(nn.Module):
    """Base of self-attention with a common qkv layer, as timm and mmdet have it.

    Takes over the submodules (and so the parameter names) of the original.

    Attributes:
        num_heads: number of attention heads.
        scale: factor on the queries; 1 where the original has none.
        qkv: [.., C] -> [.., 3 * heads * head_dim]; queries, keys and values one after the other.
        proj: [.., heads * head_dim] -> [.., C].
        scores: the product query x key^T.
        context: the product attention x value.
    """

    scale: float

    def __init__(self, attention: Any, name: str, table: BitTable) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.scale = getattr(attention, "scale", 1.0)
        self.qkv, self.proj = attention.qkv, attention.proj
        self.attn_drop, self.proj_drop = attention.attn_drop, attention.proj_drop
        self.scores = QuantMatMul(
            f"{name}.scores", "scores", ("query", "key"), table, transposed=True
        )
        self.context = QuantMatMul(
            f"{name}.context", "context", ("attention", "value"), table, transposed=False
        )

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of ``x`` [B, N, C], each [B, heads, N, head_dim]."""
        qkv: Tensor = self.qkv(x)
        qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def attended(self, logits: Tensor, value: Tensor) -> Tensor:
        """Return the values weighted by the softmax of ``logits`` [B, heads, N, N]."""
        weighted: Tensor = self.context(self.attn_drop(logits.softmax(dim=-1)), value)
        return weighted

    def project(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Join the heads of ``x`` [B, heads, N, head_dim], normalise if asked to, project to [B, N, C]."""
        batch, _, tokens, _ = x.shape
        joined = x.transpose(1, 2).reshape(batch, tokens, -1)
        projected: Tensor = self.proj_drop(self.proj(joined if norm is None else norm(joined)))
        return projected
