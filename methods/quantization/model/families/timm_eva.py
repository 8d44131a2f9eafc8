"""timm's EVA and EVA-02, and what has their blocks: rotary positions, gated MLPs, qkv in one or three layers.

The positions that rotate queries and keys are those that the model itself makes of its grid of patches.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.joined import joined_qkv
from vit_ptq_bench.methods.quantization.model.families.plain import PlainTransformer, Run, scaled
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.timm_block import replace_block


class QuantRotaryAttention(QuantSelfAttention):
    """EVA's attention with its two products made explicit; queries and keys are quantized as they meet.

    Queries, keys and values come from one layer ``qkv``, also where the original has three, or biases beside
    it.
    """

    def __init__(
        self, attention: EvaAttention | AttentionRope, name: str, table: BitTable, rotary: bool
    ) -> None:
        super().__init__(attention, name, table)
        self.qkv = joined_qkv(attention)
        self.q_norm, self.k_norm, self.norm = attention.q_norm, attention.k_norm, attention.norm
        self.prefix, self.rotate_half = attention.num_prefix_tokens, bool(attention.rotate_half)
        self.keys_rotated = rotary

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            x: [B, N, C], as is the result.
            rope: sines and cosines of the patches, [.., patches, 2 * head_dim]; None: nothing is rotated.
            attn_mask, is_causal: not used by image classifiers.

        Raises:
            MethodError: a mask is given.
        """
        if attn_mask is not None or is_causal:
            raise MethodError("masked attention is not supported in a quantized EVA")
        query, key, value = self.split_heads(x)
        query, key = (self._rotated(each, rope) for each in (self.q_norm(query), self.k_norm(key)))
        return self.project(self._attend(query, key, value), self.norm)

    def _rotated(self, x: Tensor, rope: Tensor | None) -> Tensor:
        """Rotate queries or keys [B, heads, N, head_dim] of patches by their positions."""
        if rope is None:
            return x
        prefix, patches = x[:, :, : self.prefix], x[:, :, self.prefix :]
        rotated = apply_rot_embed_cat(patches, rope, half=self.rotate_half)
        return torch.cat((prefix, rotated), dim=2).type_as(x)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.scores.idle and self.context.idle:  # as the original does, to the last digit
            return scaled_dot_product_attention(query, key, value)
        return self.attended(self.scores(query * self.scale, key), value)


@register_family
class TimmEva(PlainTransformer):
    """`timm.models.Eva` with blocks that normalise first: EVA, EVA-02, rotary ViTs, DINOv3's backbones."""

    name = "timm-eva"
    description = "timm EVA and EVA-02 and other rotary ViTs (eva02_*, vit_*_rope_*)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) is Eva

    def embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks (`Eva.forward_features`): [B, N, C]."""
        model = self.model
        tokens, _ = model._pos_embed(model.patch_embed(images))
        x: Tensor = model.norm_pre(tokens)
        return x

    def runs(self, block: Any, index: int) -> tuple[Run, Run, Run]:
        model = self.model
        return (
            partial(_block, model, block, index),
            partial(_attention_half, model, block, index),
            partial(_mlp_half, block),
        )

    def replace_block(self, block: Any, name: str) -> None:
        self.require(block, EvaBlock, name)
        if type(block.attn) not in (EvaAttention, AttentionRope):
            self.require(block.attn, EvaAttention, f"{name}.attn")
        if block.attn.gate is not None:
            raise self.refusal(f"{name}.attn has an output gate")
        if getattr(block.attn, "num_kv_groups", 1) != 1:
            raise self.refusal(f"{name}.attn has fewer heads of keys and values than of queries")
        rotary = self.model.rope is not None
        attention = QuantRotaryAttention(block.attn, f"{name}.attn", self.table, rotary)
        replace_block(self, block, name, attention)


def _positions(model: Any, index: int, x: Tensor) -> Tensor | None:
    """What rotates queries and keys of block ``index``, where ``x`` [B, N, C] enters it.

    Raises:
        MethodError: the images are not of the model's size, which the tokens alone do not tell.
    """
    if model.rope is None:
        return None
    height, width = model.patch_embed.grid_size
    patches = x.shape[1] - model.num_prefix_tokens
    if patches != height * width:
        raise MethodError(
            f"blocks of this {type(model).__name__} run by themselves for {height} x {width} patches only, "
            f"not for {patches}; use images of its own size, or build it with another img_size"
        )
    shape = None if _cached(model.rope) else [height, width]
    found: Tensor = model.rope.get_embed(shape=shape)
    return found[index] if model.rope_mixed else found


def _cached(rope: Any) -> bool:
    """Whether the positions of the model's own grid are kept, as `Eva._pos_embed` then takes them."""
    return getattr(rope, "feat_shape", None) is not None


def _block(model: Any, block: Any, index: int, x: Tensor) -> Tensor:
    """What `timm.models.eva.Eva.forward_features` does with a block."""
    result: Tensor = block(x, rope=_positions(model, index, x))
    return result


def _attention_half(model: Any, block: Any, index: int, x: Tensor) -> Tensor:
    """The first half of `timm.models.eva.EvaBlock.forward`."""
    attended = block.attn(block.norm1(x), rope=_positions(model, index, x))
    return x + scaled(block.drop_path1, block.gamma_1, attended)


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half."""
    return x + scaled(block.drop_path2, block.gamma_2, block.mlp(block.norm2(x)))
