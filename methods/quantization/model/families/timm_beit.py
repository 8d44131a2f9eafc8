"""timm's BEiT: positions relative to each other, added to the scores of every attention."""

from functools import partial
from typing import Any

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.joined import joined_qkv
from vit_ptq_bench.methods.quantization.model.families.plain import PlainTransformer, Run, scaled
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.timm_block import replace_block


class QuantBiasedAttention(QuantSelfAttention):
    """BEiT's attention with its two products made explicit.

    As `timm.models.beit.Attention`, whose parameter names it keeps, but for the biases of queries and values,
    which become those of ``qkv``.
    """

    relative_position_index: Tensor | None

    def __init__(self, attention: Attention, name: str, table: BitTable) -> None:
        super().__init__(attention, name, table)
        self.qkv = joined_qkv(attention)
        self.relative_position_bias_table: nn.Parameter | None = (
            attention.relative_position_bias_table
        )
        self.register_buffer(
            "relative_position_index", attention.relative_position_index, persistent=False
        )

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: [B, N, C], as is the result.
            shared_rel_pos_bias: added to the scores, [heads, N, N]; None: nothing.
        """
        query, key, value = self.split_heads(x)
        return self.project(self._attend(query, key, value, self._bias(shared_rel_pos_bias)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        if self.scores.idle and self.context.idle:  # as the original does, to the last digit
            return scaled_dot_product_attention(query, key, value, attn_mask=bias)
        logits: Tensor = self.scores(query * self.scale, key)
        return self.attended(logits if bias is None else logits + bias, value)

    def _bias(self, shared: Tensor | None) -> Tensor | None:
        """What is added to the scores: of this layer, of all layers, or both; [1, heads, N, N]."""
        table, index = self.relative_position_bias_table, self.relative_position_index
        if table is None or index is None:
            return shared
        own = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous()
        return own[None] if shared is None else own[None] + shared


@register_family
class TimmBeit(PlainTransformer):
    """`timm.models.Beit`: BEiT and BEiT v2."""

    name = "timm-beit"
    description = "timm BEiT (beit_*, beitv2_*)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) is Beit

    def embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks (`Beit.forward_features`): [B, N, C]."""
        model = self.model
        x: Tensor = model.patch_embed(images)
        x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if model.pos_embed is not None:
            x = x + model.pos_embed
        dropped: Tensor = model.pos_drop(x)
        return dropped

    def runs(self, block: Any, index: int) -> tuple[Run, Run, Run]:
        model = self.model
        return (
            partial(_block, model, block),
            partial(_attention_half, model, block),
            partial(_mlp_half, block),
        )

    def replace_block(self, block: Any, name: str) -> None:
        self.require(block, Block, name)
        self.require(block.attn, Attention, f"{name}.attn")
        attention = QuantBiasedAttention(block.attn, f"{name}.attn", self.table)
        replace_block(self, block, name, attention)


def _shared(model: Any) -> Tensor | None:
    """The position bias of all layers, [heads, N, N]."""
    bias: Tensor | None = None if model.rel_pos_bias is None else model.rel_pos_bias()
    return bias


def _block(model: Any, block: Any, x: Tensor) -> Tensor:
    """What `timm.models.beit.Beit.forward_features` does with a block."""
    result: Tensor = block(x, shared_rel_pos_bias=_shared(model))
    return result


def _attention_half(model: Any, block: Any, x: Tensor) -> Tensor:
    """The first half of `timm.models.beit.Block.forward`."""
    attended = block.attn(block.norm1(x), shared_rel_pos_bias=_shared(model))
    return x + scaled(block.drop_path1, block.gamma_1, attended)


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half."""
    return x + scaled(block.drop_path2, block.gamma_2, block.mlp(block.norm2(x)))
