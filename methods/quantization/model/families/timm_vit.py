"""timm's Vision Transformer and DeiT (plain and distilled)."""

from functools import partial
from typing import Any

from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.plain import PlainTransformer, Run
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.timm_block import replace_block


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
class TimmViT(PlainTransformer):
    """`timm.models.VisionTransformer` and `VisionTransformerDistilled` made of standard blocks.

    That includes LayerScale (DeiT-III), register tokens, norms of queries and keys and gated MLPs (DINOv2).
    """

    name = "timm-vit"
    description = (
        "timm ViT and DeiT (vit_*, deit_*, with standard blocks and token or average pooling)"
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) in (VisionTransformer, VisionTransformerDistilled)

    def replace_layers(self) -> None:
        if isinstance(self.model, VisionTransformerDistilled):
            self.heads = ("head", "head_dist")
        super().replace_layers()

    def embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks (`VisionTransformer.forward_features`): [B, N, C]."""
        model = self.model
        x: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return x

    def runs(self, block: Any, index: int) -> tuple[Run, Run, Run]:
        return block, partial(_attention_half, block), partial(_mlp_half, block)

    def replace_block(self, block: Any, name: str) -> None:
        self.require(block, Block, name)
        self.require(block.attn, Attention, f"{name}.attn")
        if getattr(block.attn, "gate", None) is not None:
            raise self.refusal(f"{name}.attn has an output gate")
        attention = QuantAttention(block.attn, f"{name}.attn", self.table)
        replace_block(self, block, name, attention)


def _attention_half(block: Any, x: Tensor) -> Tensor:
    """The first half of `timm.models.vision_transformer.Block.forward`."""
    result: Tensor = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
    return result


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half."""
    result: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return result
