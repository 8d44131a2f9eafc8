"""timm's Swin Transformer."""

from functools import partial
from math import prod
from typing import Any

import torch
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.swin import (
    Half,
    SwinFamily,
    shifted,
    windows_of,
)
from vit_ptq_bench.methods.quantization.model.families.timm_block import note_block, replace_block
from vit_ptq_bench.methods.quantization.model.families.window import QuantWindowAttention
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.structure import Padding

MASKED = -100.0
"""What timm adds to the scores of tokens that are neighbours by the cyclic shift alone."""


@register_family
class TimmSwin(SwinFamily):
    """`timm.models.SwinTransformer` (version 1; relative position bias table)."""

    name = "timm-swin"
    description = "timm Swin Transformer version 1 (swin_*)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return type(model) is SwinTransformer

    def note_stream(self, index: int) -> None:
        """Everything that writes and reads the residual stream of a stage."""
        model, stage = self.model, self.model.layers[index]
        merging, following = stage.downsample, list(model.layers)[index + 1 :]
        writer = merging.reduction if isinstance(merging, PatchMerging) else model.patch_embed.proj
        stream = StreamNotes(index, writer.weight.shape[0])
        stream.written_by(writer)
        if writer is model.patch_embed.proj and not isinstance(model.patch_embed.norm, nn.Identity):
            stream.fixed("patch_embed.norm writes it, channel by channel")
        for position, block in enumerate(stage.blocks):
            note_block(stream, block, f"layers.{index}.blocks.{position}")
        if following:
            name = f"layers.{index + 1}.downsample"
            stream.merged_by(following[0].downsample, name, interleaved=False)
        else:
            self._note_head(stream)
        stream.end(self.structure)

    def _note_head(self, stream: StreamNotes) -> None:
        head = self.model.head
        if not isinstance(head.fc, WeightedOperation) or head.global_pool.pool_type not in (
            "",
            "avg",
        ):
            stream.fixed("no linear layer alone reads its last norm")
            return
        stream.read_by(self.model.norm, head.fc, name="norm")

    def replace_merging(self, stage: Any, name: str) -> None:
        self.require(stage.downsample, PatchMerging, name)
        self.quantize_norm(stage.downsample, "norm", f"{name}.norm")
        reduction = self.replace(stage.downsample, "reduction", f"{name}.reduction", "reduction")
        self.link(stage.downsample.norm, reduction)

    def halves_of(self, block: Any) -> tuple[Half, Half]:
        return partial(_attention_half, block), partial(_mlp_half, block)

    def replace_block(self, stage: Any, position: int, name: str) -> Any:
        block = stage.blocks[position]
        self.require(block, SwinTransformerBlock, name)
        self.require(block.attn, WindowAttention, f"{name}.attn")
        attention = QuantWindowAttention(block.attn, f"{name}.attn", self.table)
        padding = None
        if _may_be_padded(block):
            block = stage.blocks[position] = QuantPaddedBlock(block)
            padding = block.padding
        replace_block(self, block, name, attention, padding=padding)
        return block


def _may_be_padded(block: Any) -> bool:
    """Whether windows reach beyond the map: they do not divide it, or it may have any size."""
    sizes = zip(block.input_resolution, block.window_size, strict=True)
    return getattr(block, "dynamic_mask", False) or any(length % size for length, size in sizes)


class QuantPaddedBlock(nn.Module):
    """A block whose windows may reach beyond its map: padded tokens have the value of `Padding`.

    As `timm.models.swin_transformer.SwinTransformerBlock`, whose parameter names it keeps, but for that
    value, which is zero until something is folded into the LayerNorm before.
    """

    attn_mask: Tensor | None

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.window_size: tuple[int, int] = tuple(original.window_size)
        self.shift_size: tuple[int, int] = tuple(original.shift_size)
        self.dynamic = bool(getattr(original, "dynamic_mask", False))
        self.norm1, self.attn, self.drop_path1 = original.norm1, original.attn, original.drop_path1
        self.norm2, self.mlp, self.drop_path2 = original.norm2, original.mlp, original.drop_path2
        self.register_buffer("attn_mask", original.attn_mask, persistent=False)
        self.padding = Padding(original.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        return _mlp_half(self, _attention_half(self, x))

    def _attn(self, x: Tensor) -> Tensor:
        """Attend within windows of a normalised map [B, H, W, C]."""
        _, height, width, channels = x.shape
        down, right = self.shift_size
        x = shifted(self, x, self.padding())
        rows, columns = x.shape[1:3]
        windows = windows_of(self, x)
        attended = self.attn(
            windows, mask=self._mask(rows, columns, x) if self.dynamic else self.attn_mask
        )
        merged = window_reverse(
            attended.view(-1, *self.window_size, channels), self.window_size, rows, columns
        )
        x = merged[:, :height, :width].contiguous()
        return x.roll(self.shift_size, dims=(1, 2)) if down or right else x

    def _mask(self, height: int, width: int, x: Tensor) -> Tensor | None:
        """Additive mask [windows, N, N]: regions that the shift brought together stay apart."""
        if not any(self.shift_size):
            return None
        rows, columns = (
            _regions(length, size, shift, x.device)
            for length, size, shift in zip(
                (height, width), self.window_size, self.shift_size, strict=True
            )
        )
        numbers = (rows[:, None] * 3 + columns[None, :])[None, :, :, None]
        windows = window_partition(numbers, self.window_size).view(-1, prod(self.window_size))
        apart = windows[:, None, :] != windows[:, :, None]
        return torch.zeros(apart.shape, dtype=x.dtype, device=x.device).masked_fill_(apart, MASKED)


def _regions(length: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Number of the region of each row or column; without a shift there is one."""
    place = torch.arange(length, device=device)
    if not shift:
        return torch.zeros_like(place)
    regions: Tensor = (place >= length - size).long() + (place >= length - shift).long()
    return regions


def _attention_half(block: Any, x: Tensor) -> Tensor:
    """The first half of `timm.models.swin_transformer.SwinTransformerBlock.forward`; [B, H, W, C]."""
    result: Tensor = x + block.drop_path1(block._attn(block.norm1(x)))
    return result


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The second half; [B, H, W, C]."""
    result: Tensor = x + block.drop_path2(block.mlp(block.norm2(x)))
    return result
