"""mmdet's detectors with a Swin backbone."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.mmdet_detector import (
    DetectorFamily,
    is_detector,
    place_of,
)
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.window import (
    QuantWindowAttention,
    pad_to_windows,
)
from vit_ptq_bench.methods.quantization.model.structure import AttentionLink, Padding, ValueLink

MASKED = -100.0
"""What mmdet adds to the scores of tokens that are neighbours by the cyclic shift alone."""


class QuantShiftedWindows(nn.Module):
    """Window attention on a padded, cyclically shifted feature map.

    As mmdet's ``ShiftWindowMSA``, whose parameter names it keeps, but for the padded tokens: they have the
    value of `Padding`, zero until something is folded into the LayerNorm before.
    """

    def __init__(self, original: Any, attention: QuantWindowAttention, channels: int) -> None:
        super().__init__()
        self.size, self.shift = original.window_size, original.shift_size
        self.w_msa, self.drop = attention, original.drop
        self.padding = Padding(channels)

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Attend within windows; ``query`` and the result are [B, H * W, C]."""
        batch, _, channels = query.shape
        height, width = hw_shape
        x = self._shifted(query.view(batch, height, width, channels), self.padding())
        mask = self._mask(x) if self.shift else None
        shape = x.shape
        x = self._merged(self.w_msa(self._windows(x).flatten(1, 2), mask), shape)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        dropped: Tensor = self.drop(x[:, :height, :width].reshape(batch, height * width, channels))
        return dropped

    def arrange(self, x: Tensor) -> Tensor:
        """Return a map [B, H, W, C] as the attention reads one, padded with zeros: [B * windows, N, C]."""
        return self._windows(self._shifted(x, x.new_zeros(x.shape[-1]))).flatten(1, 2)

    def _shifted(self, x: Tensor, padding: Tensor) -> Tensor:
        """Pad a map [B, H, W, C] to whole windows with ``padding`` [C] and shift it cyclically."""
        x = pad_to_windows(x, (self.size, self.size), padding)
        return x.roll((-self.shift, -self.shift), dims=(1, 2)) if self.shift else x

    def _windows(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B * windows, size, size, C]."""
        batch, height, width, channels = x.shape
        size = self.size
        x = x.view(batch, height // size, size, width // size, size, channels)
        return x.transpose(2, 3).flatten(0, 2)

    def _merged(self, windows: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of `_windows` for windows with flat tokens ([B * windows, size^2, C])."""
        batch, height, width, channels = shape
        size = self.size
        x = windows.view(batch, height // size, width // size, size, size, channels)
        return x.transpose(2, 3).reshape(batch, height, width, channels)

    def _mask(self, x: Tensor) -> Tensor:
        """Additive mask [windows, size^2, size^2]: regions that the shift brought together stay apart."""
        rows, columns = (self._regions(length, x.device) for length in x.shape[1:3])
        numbers = rows[:, None] * 3 + columns[None, :]
        windows = self._windows(numbers[None, :, :, None]).flatten(1)
        apart = windows[:, None, :] != windows[:, :, None]
        return torch.zeros(apart.shape, device=x.device).masked_fill_(apart, MASKED)

    def _regions(self, length: int, device: torch.device) -> Tensor:
        place = torch.arange(length, device=device)
        regions: Tensor = (place >= length - self.size).int() + (place >= length - self.shift).int()
        return regions


@register_family
class MMDetSwin(DetectorFamily):
    """mmdet detectors whose backbone is `mmdet.models.backbones.swin.SwinTransformer`."""

    name = "mmdet-swin"
    description = (
        "mmdet detectors with a Swin backbone (two-stage, one-stage and DETR-like; in scope full "
        "Faster, Mask and Cascade (Mask) R-CNN, RetinaNet, FCOS, ATSS, GFL)"
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        place = place_of(getattr(model, "backbone", None))
        return is_detector(model) and place == "mmdet.models.backbones.swin.SwinTransformer"

    def replace_backbone(self) -> None:
        backbone = self.model.backbone
        self.replace(
            backbone.patch_embed, "projection", "backbone.patch_embed.projection", "patch_embed"
        )
        self.quantize_norm(backbone.patch_embed, "norm", "backbone.patch_embed.norm")
        self.segment("backbone.patch_embed", "embed", self._embed)
        for index, stage in enumerate(backbone.stages):
            self._replace_stage(stage, index)

    def note_streams(self) -> None:
        for index in range(len(self.model.backbone.stages)):
            self._note_stream(index)

    def _embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks: [B, H, W, C]."""
        backbone = self.model.backbone
        x, shape = backbone.patch_embed(images)
        if backbone.use_abs_pos_embed:
            x = x + backbone.absolute_pos_embed
        maps: Tensor = backbone.drop_after_pos(x).unflatten(1, shape)
        return maps

    def _replace_stage(self, stage: Any, index: int) -> None:
        name = f"backbone.stages.{index}"
        for position, block in enumerate(stage.blocks):
            self._replace_block(block, f"{name}.blocks.{position}")
            last = position == len(stage.blocks) - 1
            tapped = last and index in self.model.backbone.out_indices
            self.segment(
                f"{name}.blocks.{position}",
                "block",
                partial(_run_block, block),
                stage=index,
                halves=(partial(_attention_half, block), partial(_mlp_half, block)),
                tap=partial(self._tap, index) if tapped else None,
                arrange=block.attn.arrange,
            )
        if stage.downsample is None:
            return
        merging = stage.downsample
        self.quantize_norm(merging, "norm", f"{name}.downsample.norm")
        reduction = self.replace(merging, "reduction", f"{name}.downsample.reduction", "reduction")
        self.link(merging.norm, reduction)
        self.segment(f"{name}.downsample", "merge", partial(_merge, merging), stage=index + 1)

    def _replace_block(self, block: Any, name: str) -> None:
        self.structure.blocks.append(name)
        original = block.attn
        attention = QuantWindowAttention(original.w_msa, f"{name}.attn.w_msa", self.table)
        block.attn = QuantShiftedWindows(original, attention, original.w_msa.embed_dims)
        self.quantize_norm(block, "norm1", f"{name}.norm1")
        qkv = self.replace(attention, "qkv", f"{name}.attn.w_msa.qkv", "qkv")
        self.structure.operations += [attention.scores, attention.context]
        proj = self.replace(attention, "proj", f"{name}.attn.w_msa.proj", "proj")
        self.quantize_norm(block, "norm2", f"{name}.norm2")
        layers = block.ffn.layers
        fc1 = self.replace(layers[0], "0", f"{name}.ffn.layers.0.0", "fc1")
        self.replace(layers, "1", f"{name}.ffn.layers.1", "fc2")
        self.link(block.norm1, qkv, block.attn.padding)
        self.link(block.norm2, fc1)
        self.structure.value_links.append(ValueLink(qkv, attention.context, proj))
        place = f"{name}.attn.w_msa"
        self.structure.attention_links.append(AttentionLink(place, attention.num_heads, qkv, proj))

    def _note_stream(self, index: int) -> None:
        """Everything that writes and reads the residual stream of a stage."""
        backbone, stage = self.model.backbone, self.model.backbone.stages[index]
        embedding = backbone.patch_embed
        before = backbone.stages[index - 1].downsample if index else None
        writer = embedding.projection if before is None else before.reduction
        stream = StreamNotes(index, writer.weight.shape[0])
        stream.written_by(writer)
        if index == 0 and embedding.norm is not None:
            stream.fixed("backbone.patch_embed.norm writes it, channel by channel")
        if index == 0 and backbone.use_abs_pos_embed:
            stream.holds(backbone.absolute_pos_embed)
        for position, block in enumerate(stage.blocks):
            _note_block(stream, block, f"backbone.stages.{index}.blocks.{position}")
        if stage.downsample is not None:
            name = f"backbone.stages.{index}.downsample"
            stream.merged_by(stage.downsample, name, interleaved=True)
        if index in backbone.out_indices:
            norm = getattr(backbone, f"norm{index}")
            level = list(backbone.out_indices).index(index)
            self.note_neck(stream, level, norm, f"backbone.norm{index}")
        stream.end(self.structure)

    def _tap(self, index: int, x: Tensor) -> Tensor:
        """What the neck reads of a stage: [B, C, H, W]."""
        norm = getattr(self.model.backbone, f"norm{index}")
        normalised: Tensor = norm(x)
        return normalised.permute(0, 3, 1, 2).contiguous()


def _note_block(stream: StreamNotes, block: Any, name: str) -> None:
    """What a replaced block reads of its stream, and what it adds to it."""
    attention, layers = block.attn.w_msa, block.ffn.layers
    stream.read_by(block.norm1, attention.qkv, name=f"{name}.norm1", padding=block.attn.padding)
    stream.written_by(attention.proj)
    stream.read_by(block.norm2, layers[0][0], name=f"{name}.norm2")
    stream.written_by(layers[1])


def _run_block(block: Any, x: Tensor) -> Tensor:
    """A block on a map [B, H, W, C]."""
    tokens: Tensor = block(x.flatten(1, 2), tuple(x.shape[1:3]))
    return tokens.view(x.shape)


def _attention_half(block: Any, x: Tensor) -> Tensor:
    """Attention with its residual; [B, H, W, C]."""
    flat = x.flatten(1, 2)
    attended: Tensor = block.attn(block.norm1(flat), tuple(x.shape[1:3]))
    return (flat + attended).view(x.shape)


def _mlp_half(block: Any, x: Tensor) -> Tensor:
    """The MLP with its residual; [B, H, W, C]."""
    result: Tensor = block.ffn(block.norm2(x), identity=x)
    return result


def _merge(merging: Any, x: Tensor) -> Tensor:
    """Patch merging of a map [B, H, W, C]."""
    tokens, shape = merging(x.flatten(1, 2), tuple(x.shape[1:3]))
    merged: Tensor = tokens.unflatten(1, shape)
    return merged
