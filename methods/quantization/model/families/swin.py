"""Swin Transformers of timm: patches, stages of blocks on windows, patch mergings between, a classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from timm.layers import PatchEmbed
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.window import pad_to_windows

Half = Callable[[Tensor], Tensor]
"""Maps a residual stream [B, H, W, C] to the next one."""


class SwinFamily(Family):
    """Base of both versions."""

    @abstractmethod
    def replace_merging(self, stage: Any, name: str) -> None:
        """Replace the layer of the patch merging before a stage."""

    @abstractmethod
    def replace_block(self, stage: Any, position: int, name: str) -> Any:
        """Replace the layers of one block and return the block that then stands there."""

    @abstractmethod
    def halves_of(self, block: Any) -> tuple[Half, Half]:
        """Return what attention and MLP of a block do, each with its residual."""

    @abstractmethod
    def note_stream(self, index: int) -> None:
        """Note everything that writes and reads the residual stream of a stage."""

    def replace_layers(self) -> None:
        model = self.model
        self.require(model.patch_embed, PatchEmbed, "patch_embed")
        self.replace(model.patch_embed, "proj", "patch_embed.proj", "patch_embed")
        self.quantize_norm(model.patch_embed, "norm", "patch_embed.norm")
        self.segment("patch_embed", "embed", model.patch_embed)
        for index, stage in enumerate(model.layers):
            self._replace_stage(stage, index)
        self.quantize_norm(model, "norm", "norm")
        if isinstance(model.head.fc, nn.Linear):
            self.replace(model.head, "fc", "head.fc", "head")
        self.segment("head", "head", partial(_head, model))
        for index in range(len(model.layers)):
            self.note_stream(index)

    def _replace_stage(self, stage: Any, index: int) -> None:
        if not isinstance(stage.downsample, nn.Identity):
            name = f"layers.{index}.downsample"
            self.replace_merging(stage, name)
            self.segment(name, "merge", stage.downsample, stage=index)
        for position in range(len(stage.blocks)):
            name = f"layers.{index}.blocks.{position}"
            block = self.replace_block(stage, position, name)
            arrange = partial(_arranged, block)
            halves = self.halves_of(block)
            self.segment(name, "block", block, stage=index, halves=halves, arrange=arrange)


def shifted(block: Any, x: Tensor, padding: Tensor) -> Tensor:
    """Shift a map [B, H, W, C] cyclically and pad it to whole windows with ``padding`` [C]."""
    down, right = block.shift_size
    if down or right:
        x = x.roll((-down, -right), dims=(1, 2))
    return pad_to_windows(x, tuple(block.window_size), padding)


def windows_of(block: Any, x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B * windows, N, C]."""
    windows: Tensor = window_partition(x, block.window_size)
    return windows.view(-1, prod(block.window_size), x.shape[-1])


def _arranged(block: Any, x: Tensor) -> Tensor:
    """What `Segment.arrange` says of a map [B, H, W, C]."""
    return windows_of(block, shifted(block, x, x.new_zeros(x.shape[-1])))


def _head(model: Any, x: Tensor) -> Tensor:
    """Final norm and classifier; no closure, so that a copy of a wrapped model runs the copy."""
    logits: Tensor = model.forward_head(model.norm(x))
    return logits
