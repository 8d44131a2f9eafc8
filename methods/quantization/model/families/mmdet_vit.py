"""mmdet's detectors with a plain ViT of timm as their backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.families.mmdet_detector import (
    DetectorFamily,
    is_detector,
    place_of,
)
from vit_ptq_bench.methods.quantization.model.families.plain import Run
from vit_ptq_bench.methods.quantization.model.families.registry import register_family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.timm_vit import TimmViT

BACKBONE = "vit_ptq_bench.tasks.detection.plain_vit.TimmViT"


class BackboneViT(TimmViT):
    """timm's ViT in a detector: its stream is a map [B, H, W, C], for images of one batch have one size.

    Args:
        detector: the adapter of the whole, which notes the rest.
        table: the bit table.
    """

    place = "backbone.vit."

    def __init__(self, detector: DetectorFamily, table: BitTable) -> None:
        super().__init__(detector.model.backbone.vit, table)
        self.structure = detector.structure
        self._note_neck: Callable[..., None] = detector.note_neck

    def embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks: [B, H, W, C]."""
        model = self.model
        maps = model.patch_embed(images)
        tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(maps)))
        return tokens.view(maps.shape)

    def runs(self, block: Any, index: int) -> tuple[Run, Run, Run]:
        whole, attention, mlp = super().runs(block, index)
        return partial(_on_map, whole), partial(_on_map, attention), partial(_on_map, mlp)

    def arrange(self, x: Tensor) -> Tensor:
        """Return a map [B, H, W, C] as the attention reads it: [B, N, C]."""
        return x.flatten(1, 2)

    def tap(self, x: Tensor) -> Tensor:
        """Return what the neck reads of the last block's map: [B, C, H, W]."""
        normalised: Tensor = self.model.norm(x)
        return normalised.permute(0, 3, 1, 2).contiguous()

    def replace_head(self) -> None:
        """There is none; the neck reads the last norm."""

    def note_head(self, stream: StreamNotes) -> None:
        self._note_neck(stream, 0, self.model.norm, f"{self.place}norm")


@register_family
class MMDetViT(DetectorFamily):
    """mmdet detectors whose backbone is ``TimmViT`` (`vit_ptq_bench.tasks.detection.plain_vit`)."""

    name = "mmdet-vit"
    description = "the same detectors with timm's plain ViT as the backbone (type TimmViT)"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return is_detector(model) and place_of(getattr(model, "backbone", None)) == BACKBONE

    def replace_backbone(self) -> None:
        self._vit = BackboneViT(self, self.table)
        self._vit.replace_trunk()

    def note_streams(self) -> None:
        self._vit.note_stream()


def _on_map(run: Run, x: Tensor) -> Tensor:
    """What ``run`` makes of the tokens of a map [B, H, W, C]."""
    return run(x.flatten(1, 2)).view(x.shape)
