"""mmdet's two-stage detectors (Mask R-CNN, Cascade Mask R-CNN) with a Swin backbone."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.window import (
    QuantWindowAttention,
    pad_to_windows,
)
from vit_ptq_bench.methods.quantization.model.structure import AttentionLink, Padding, ValueLink

PARTS = {
    "neck": "neck",
    "rpn_head": "rpn_head",
    "roi_head.bbox_head": "bbox_head",
    "roi_head.mask_head": "mask_head",
}
"""Modules behind the backbone and the role of their layers."""

MASKED = -100.0
"""What mmdet adds to the scores of tokens that are neighbours by the cyclic shift alone."""

MASK_ROIS = 100
"""Regions whose masks are looked at, as mmdet's own forward does; spread over the batch."""


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
class MMDetSwin(Family):
    """mmdet detectors of one backbone (Swin), one neck, an RPN and RoI heads.

    The bit table's scope says what is quantized: the backbone, or also every linear layer and convolution
    behind it. The transposed convolution of a mask head stays in floating point, as in RepQ-ViT's code.
    """

    name = "mmdet-swin"
    description = "mmdet two-stage detectors with a Swin backbone (Mask R-CNN, Cascade Mask R-CNN)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        backbone: Any = getattr(model, "backbone", None)
        two_stage = all(hasattr(model, part) for part in ("neck", "rpn_head", "roi_head"))
        # By name: importing mmdet takes seconds, and a classifier does without.
        place = f"{type(backbone).__module__}.{type(backbone).__name__}"
        return two_stage and place == "mmdet.models.backbones.swin.SwinTransformer"

    def replace_layers(self) -> None:
        backbone = self.model.backbone
        self.replace(
            backbone.patch_embed, "projection", "backbone.patch_embed.projection", "patch_embed"
        )
        self.quantize_norm(backbone.patch_embed, "norm", "backbone.patch_embed.norm")
        self.segment("backbone.patch_embed", "embed", self._embed)
        for index, stage in enumerate(backbone.stages):
            self._replace_stage(stage, index)
        if self.table.scope == "full":
            self._replace_heads()
        for index in range(len(backbone.stages)):
            self._note_stream(index)
        self.structure.tail = self._neck
        self.structure.observe = self._observe

    def quantized_part(self) -> Iterable[tuple[str, nn.Module]]:
        """Return the backbone, or all but the transposed convolutions (no `nn.Conv2d`)."""
        part = self.model if self.table.scope == "full" else self.model.backbone
        modules: Iterable[tuple[str, nn.Module]] = part.named_modules()
        return modules

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
            self._note_neck(stream, index)
        stream.end(self.structure)

    def _note_neck(self, stream: StreamNotes, index: int) -> None:
        """What reads the feature map of a stage: the lateral convolution of a feature pyramid."""
        neck = self.model.neck
        place = f"{type(neck).__module__}.{type(neck).__name__}"
        if place != "mmdet.models.necks.fpn.FPN" or neck.add_extra_convs == "on_input":
            stream.fixed(f"it is not known what in the neck ({place}) reads it")
            return
        level = list(self.model.backbone.out_indices).index(index) - neck.start_level
        read = [lateral.conv for i, lateral in enumerate(neck.lateral_convs) if i == level]
        norm = getattr(self.model.backbone, f"norm{index}")
        stream.read_by(norm, *read, name=f"backbone.norm{index}")

    def _replace_heads(self) -> None:
        for part, role in PARTS.items():
            if not hasattr(self.model, part.split(".")[0]):
                continue
            module = _submodule(self.model, part)
            if module is None:
                continue
            for name, parent in list(module.named_modules(prefix=part)):
                for child, layer in list(parent.named_children()):
                    if isinstance(layer, nn.Linear | nn.Conv2d):
                        self.replace(parent, child, f"{name}.{child}", role)

    def _tap(self, index: int, x: Tensor) -> Tensor:
        """What the neck reads of a stage: [B, C, H, W]."""
        norm = getattr(self.model.backbone, f"norm{index}")
        normalised: Tensor = norm(x)
        return normalised.permute(0, 3, 1, 2).contiguous()

    def _neck(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.model.neck(list(maps)))

    def _observe(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the neck and, in scope ``full``, what RPN and RoI heads make of them.

        Proposals are taken as they are: nothing is differentiated through their selection.
        """
        model = self.model
        features = tuple(model.extract_feat(images))
        if self.table.scope == "backbone":
            return features
        from mmdet.structures.bbox import bbox2roi

        shape = tuple(images.shape[-2:])
        facts = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
        scores, boxes = model.rpn_head(features)
        with torch.no_grad():
            proposals = model.rpn_head.predict_by_feat(
                [score.detach() for score in scores],
                [box.detach() for box in boxes],
                batch_img_metas=[facts] * len(images),
            )
        rois = bbox2roi([proposal.bboxes for proposal in proposals])
        found = _roi_outputs(model.roi_head, features, rois, facts)
        return (*features, *scores, *boxes, *found)


def _roi_outputs(
    roi_head: Any, features: tuple[Tensor, ...], rois: Tensor, facts: dict[str, Any]
) -> list[Tensor]:
    """Scores, boxes and masks of every stage of the RoI heads, each stage on the boxes of the one before.

    Args:
        roi_head: mmdet's, standard or cascade.
        features: of the neck.
        rois: [n, 5], (image, x1, y1, x2, y2).
        facts: mmdet's meta information, one for all images: they have one size.
    """
    cascade = isinstance(roi_head.bbox_head, nn.ModuleList)
    stages = [(stage,) for stage in range(roi_head.num_stages)] if cascade else [()]
    found = []
    for number, stage in enumerate(stages, start=1):
        result = roi_head._bbox_forward(*stage, features, rois)
        found += [result["cls_score"], result["bbox_pred"]]
        if number < len(stages):
            labels = result["cls_score"][:, :-1].argmax(dim=1)
            head = roi_head.bbox_head[number - 1]
            moved = head.regress_by_class(rois[:, 1:], labels, result["bbox_pred"].detach(), facts)
            rois = torch.cat([rois[:, :1], moved], dim=1)
    if roi_head.with_mask:
        some = rois[:: max(1, len(rois) // MASK_ROIS)][:MASK_ROIS]
        found += [roi_head._mask_forward(*stage, features, some)["mask_preds"] for stage in stages]
    return found


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    """Return a part of a model by its dotted name, or None: a detector may have no mask head."""
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


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
