"""timm's Swin Transformer version 2: cosine attention, and norms behind attention and MLP."""

from functools import partial
from math import log
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.swin_transformer_v2 import (
    PatchMerging,
    SwinTransformerV2,
    SwinTransformerV2Block,
    WindowAttention,
)
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.joined import joined_qkv
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.swin import SwinFamily
from vit_ptq_bench.methods.quantization.model.families.window import masked
from vit_ptq_bench.methods.quantization.model.structure import AttentionLink, ValueLink

STEEPEST = 100.0
"""Largest factor on the cosines."""

SHORTEST = 1e-12
"""Length up to which a vector counts as zero."""


class QuantCosineAttention(QuantSelfAttention):
    """Version 2's window attention with its two products made explicit: queries and keys of length 1.

    The bias of relative positions, which a small MLP makes of coordinates whatever the images are, is
    computed once: it is a constant of the model, and no layer of that MLP is left.
    """

    position_bias: Tensor

    def __init__(self, attention: WindowAttention, name: str, table: BitTable) -> None:
        super().__init__(attention, name, table)
        self.qkv = joined_qkv(attention)
        self.logit_scale = attention.logit_scale
        self.register_buffer("position_bias", _position_bias(attention))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: [windows * B, N, C].
            mask: None, or additive mask [windows, N, N] of the shifted windows.
        """
        query, key, value = self.split_heads(x)
        cosines = self.scores(_of_length_one(query), _of_length_one(key))
        factor = self.logit_scale.clamp(max=log(STEEPEST)).exp()
        logits: Tensor = cosines * factor + self.position_bias
        return self.project(self.attended(masked(logits, mask), value))


def _of_length_one(x: Tensor) -> Tensor:
    """Divide vectors [..., head_dim] by their lengths; one of no length stays zero, and has no gradient.

    Keys of padded tokens are zero, as keys have no bias. The derivative of `torch.nn.functional.normalize`
    is 1e12 there, so that methods that weigh errors by gradients would look at padded tokens alone.
    """
    length = x.norm(dim=-1, keepdim=True)
    inverse = torch.where(length > SHORTEST, 1 / length.clamp_min(SHORTEST), 0.0)
    return x * inverse


@torch.no_grad()
def _position_bias(attention: Any) -> Tensor:
    """What is added to the scores, [heads, N, N]: from 0 to 16."""
    index: Tensor = attention.relative_position_index
    table = attention.cpb_mlp(attention.relative_coords_table).view(-1, attention.num_heads)
    bias: Tensor = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)
    return 16 * bias.sigmoid().contiguous()


@register_family
class TimmSwinV2(SwinFamily):
    """`timm.models.SwinTransformerV2`."""

    name = "timm-swin-v2"
    description = "timm Swin Transformer version 2 (swinv2_*, but for swinv2_cr_*)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) is SwinTransformerV2

    def replace_merging(self, stage: Any, name: str) -> None:
        self.require(stage.downsample, PatchMerging, name)
        self.replace(stage.downsample, "reduction", f"{name}.reduction", "reduction")
        self.quantize_norm(stage.downsample, "norm", f"{name}.norm")

    def replace_block(self, stage: Any, position: int, name: str) -> Any:
        block, structure = stage.blocks[position], self.structure
        self.require(block, SwinTransformerV2Block, name)
        self.require(block.attn, WindowAttention, f"{name}.attn")
        self.require(block.mlp, Mlp, f"{name}.mlp")
        structure.blocks.append(name)
        block.attn = attention = QuantCosineAttention(block.attn, f"{name}.attn", self.table)
        qkv = self.replace(attention, "qkv", f"{name}.attn.qkv", "qkv")
        structure.operations += [attention.scores, attention.context]
        proj = self.replace(attention, "proj", f"{name}.attn.proj", "proj")
        self.quantize_norm(block, "norm1", f"{name}.norm1")
        self.replace(block.mlp, "fc1", f"{name}.mlp.fc1", "fc1")
        fc2 = self.replace(block.mlp, "fc2", f"{name}.mlp.fc2", "fc2")
        self.quantize_norm(block, "norm2", f"{name}.norm2")
        structure.normed += [proj, fc2]
        structure.value_links.append(ValueLink(qkv, attention.context, proj))
        structure.attention_links.append(
            AttentionLink(f"{name}.attn", attention.num_heads, qkv, proj, keys_normed=True)
        )
        return block

    def halves_of(self, block: Any) -> Any:
        return partial(_attention_half, block), partial(_mlp_half, block)

    def note_stream(self, index: int) -> None:
        """Every stream is written by norms, so none can be rotated."""
        stage = self.model.layers[index]
        stream = StreamNotes(index, stage.blocks[0].norm1.normalized_shape[0])
        stream.fixed("norms behind attention and MLP write it, channel by channel")
        stream.end(self.structure)


def _attention_half(block: Any, x: Tensor) -> Tensor:
    """The first half of `SwinTransformerV2Block.forward`; [B, H, W, C]."""
    result: Tensor = x + block.drop_path1(block.norm1(block._attn(x)))
    return result


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half; [B, H, W, C]."""
    result: Tensor = x + block.drop_path2(block.norm2(block.mlp(x)))
    return result
