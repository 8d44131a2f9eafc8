"""timm's Swin Transformer."""

from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.timm_block import replace_block
from vit_ptq_bench.methods.quantization.model.families.window import QuantWindowAttention


@register_family
class TimmSwin(Family):
    """`timm.models.SwinTransformer` (version 1; relative position bias table)."""

    name = "timm-swin"
    description = "timm Swin Transformer version 1 (swin_*)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) is SwinTransformer

    def replace_layers(self) -> None:
        model = self.model
        self.require(model.patch_embed, PatchEmbed, "patch_embed")
        self.replace(model.patch_embed, "proj", "patch_embed.proj", "patch_embed")
        self.quantize_norm(model.patch_embed, "norm", "patch_embed.norm")
        self.segment("patch_embed", "embed", model.patch_embed)
        for index, stage in enumerate(model.layers):
            self._replace_downsample(stage, f"layers.{index}.downsample", index)
            for position, block in enumerate(stage.blocks):
                name = f"layers.{index}.blocks.{position}"
                self._replace_block(block, name)
                halves = partial(_attention_half, block), partial(_mlp_half, block)
                self.segment(name, "block", block, stage=index, halves=halves)
        self.quantize_norm(model, "norm", "norm")
        if isinstance(model.head.fc, nn.Linear):
            self.replace(model.head, "fc", "head.fc", "head")
        self.segment("head", "head", lambda x: model.forward_head(model.norm(x)))

    def _replace_downsample(self, stage: Any, name: str, index: int) -> None:
        if isinstance(stage.downsample, nn.Identity):
            return
        self.require(stage.downsample, PatchMerging, name)
        self.quantize_norm(stage.downsample, "norm", f"{name}.norm")
        reduction = self.replace(stage.downsample, "reduction", f"{name}.reduction", "reduction")
        self.link(stage.downsample.norm, reduction)
        self.segment(name, "merge", stage.downsample, stage=index)

    def _replace_block(self, block: Any, name: str) -> None:
        self.require(block, SwinTransformerBlock, name)
        self.require(block.attn, WindowAttention, f"{name}.attn")
        attention = QuantWindowAttention(block.attn, f"{name}.attn", self.table)
        replace_block(self, block, name, attention)


def _attention_half(block: Any, x: Tensor) -> Tensor:
    """The first half of `timm.models.swin_transformer.SwinTransformerBlock.forward`; [B, H, W, C]."""
    result: Tensor = x + block.drop_path1(block._attn(block.norm1(x)))
    return result


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half; [B, H, W, C]."""
    result: Tensor = x + block.drop_path2(block.mlp(block.norm2(x)))
    return result
