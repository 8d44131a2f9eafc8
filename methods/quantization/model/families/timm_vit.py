"""timm's Vision Transformer and DeiT (plain and distilled)."""

from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.timm_block import note_block, replace_block
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation


class QuantAttention(QuantSelfAttention):
    """timm's multi-head self-attention with its two products made explicit."""

    def __init__(self, attention: Attention, name: str, table: BitTable) -> None:
        super().__init__(attention, name, table)
        self.q_norm, self.k_norm, self.norm = attention.q_norm, attention.k_norm, attention.norm

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend; ``x`` and the result are [B, N, C].

        Raises:
            MethodError: a mask is given; image classifiers use none.
        """
        if attn_mask is not None or is_causal:
            raise MethodError("masked attention is not supported in a quantized ViT")
        query, key, value = self.split_heads(x)
        x = self._attend(self.q_norm(query), self.k_norm(key), value)
        return self.project(x, self.norm)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.scores.idle and self.context.idle:
            # What the original does: faster, and equal to it to the last digit.
            return scaled_dot_product_attention(query, key, value)
        return self.attended(self.scores(query * self.scale, key), value)


@register_family
class TimmViT(Family):
    """`timm.models.VisionTransformer` and `VisionTransformerDistilled` made of standard blocks."""

    name = "timm-vit"
    description = (
        "timm ViT and DeiT (vit_*, deit_*, with standard blocks and token or average pooling)"
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) in (VisionTransformer, VisionTransformerDistilled)

    def replace_layers(self) -> None:
        model = self.model
        self.require(model.patch_embed, PatchEmbed, "patch_embed")
        self.replace(model.patch_embed, "proj", "patch_embed.proj", "patch_embed")
        self.quantize_norm(model.patch_embed, "norm", "patch_embed.norm")
        self.quantize_norm(model, "norm_pre", "norm_pre")
        self.segment("patch_embed", "embed", self._embed)
        for index, block in enumerate(model.blocks):
            self._replace_block(block, f"blocks.{index}")
            halves = partial(_attention_half, block), partial(_mlp_half, block)
            self.segment(f"blocks.{index}", "block", block, halves=halves)
        for norm in ("norm", "fc_norm"):
            self.quantize_norm(model, norm, norm)
        for head in ("head", "head_dist"):
            if isinstance(getattr(model, head, None), nn.Linear):
                self.replace(model, head, head, "head")
        self.segment("head", "head", partial(_head, model))
        self._note_stream()
        distilled = isinstance(model, VisionTransformerDistilled)
        self.structure.class_tokens = 1 + distilled if model.global_pool == "token" else 0

    def _embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks (`VisionTransformer.forward_features`): [B, N, C]."""
        model = self.model
        x: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return x

    def _replace_block(self, block: Any, name: str) -> None:
        self.require(block, Block, name)
        self.require(block.attn, Attention, f"{name}.attn")
        if getattr(block.attn, "gate", None) is not None:
            raise self.refusal(f"{name}.attn has an output gate")
        attention = QuantAttention(block.attn, f"{name}.attn", self.table)
        replace_block(self, block, name, attention)

    def _note_stream(self) -> None:
        """Everything that writes and reads the one residual stream, which goes through all blocks."""
        model = self.model
        stream = StreamNotes(0, model.embed_dim)
        for place, norm in (
            ("patch_embed.norm", model.patch_embed.norm),
            ("norm_pre", model.norm_pre),
        ):
            if not isinstance(norm, nn.Identity):
                stream.fixed(f"{place} writes it, channel by channel")
        stream.written_by(model.patch_embed.proj)
        tokens = ("pos_embed", "cls_token", "reg_token", "dist_token")
        stream.holds(*(getattr(model, token, None) for token in tokens))
        for index, block in enumerate(model.blocks):
            note_block(stream, block, f"blocks.{index}")
        heads = [getattr(model, name) for name in ("head", "head_dist") if hasattr(model, name)]
        layers = [head for head in heads if isinstance(head, WeightedOperation)]
        norms = {name: getattr(model, name) for name in ("norm", "fc_norm")}
        own = {name: norm for name, norm in norms.items() if not isinstance(norm, nn.Identity)}
        if layers != heads or len(own) > 1 or model.global_pool not in ("", "token", "avg"):
            stream.fixed("no linear layer alone reads its last norm")
        name, norm = next(iter(own.items()), ("norm", None))
        stream.read_by(norm, *layers, name=name)
        stream.end(self.structure)


def _head(model: Any, x: Tensor) -> Tensor:
    """Final norm and classifier; no closure, so that a copy of a wrapped model runs the copy."""
    logits: Tensor = model.forward_head(model.norm(x))
    return logits


def _attention_half(block: Any, x: Tensor) -> Tensor:
    """The first half of `timm.models.vision_transformer.Block.forward`."""
    result: Tensor = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
    return result


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half."""
    result: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return result
