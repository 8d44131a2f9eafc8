"""Transformers of one resolution as timm has them: patches, blocks in a row, norm, pooling, classifier."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.families.timm_block import note_block
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.structure import as_it_is

Run = Callable[[Tensor], Tensor]
"""Maps a residual stream [B, N, C] to the next one."""


class PlainTransformer(Family):
    """Base of the families whose blocks all work at one resolution, on one residual stream.

    Attributes:
        heads: names of the classifiers, each fed by the last norm.
        place: what stands before the names of its modules, where it is part of a model.
        tap: of a detector's backbone, gives what the neck reads of the last block's stream; else None.
    """

    heads: tuple[str, ...] = ("head",)
    place: str = ""
    tap: Run | None = None

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """What comes before the blocks: [B, N, C]."""

    @abstractmethod
    def replace_block(self, block: Any, name: str) -> None:
        """Replace the layers of one block."""

    @abstractmethod
    def runs(self, block: Any, index: int) -> tuple[Run, Run, Run]:
        """Return what the whole block, its attention and its MLP do, each half with its residual."""

    def arrange(self, x: Tensor) -> Tensor:
        """Return a stream in the layout in which the attention reads it: as it is."""
        return as_it_is(x)

    def replace_layers(self) -> None:
        self.replace_trunk()
        self.note_stream()

    def replace_trunk(self) -> None:
        """Replace everything and note the segments."""
        model, place = self.model, self.place
        self.require(model.patch_embed, PatchEmbed, f"{place}patch_embed")
        self.replace(model.patch_embed, "proj", f"{place}patch_embed.proj", "patch_embed")
        self.quantize_norm(model.patch_embed, "norm", f"{place}patch_embed.norm")
        self.quantize_norm(model, "norm_pre", f"{place}norm_pre")
        self.segment(f"{place}patch_embed", "embed", self.embed)
        for index, block in enumerate(model.blocks):
            name = f"{place}blocks.{index}"
            self.replace_block(block, name)
            whole, attention, mlp = self.runs(block, index)
            last = index == len(model.blocks) - 1
            self.segment(
                name,
                "block",
                whole,
                halves=(attention, mlp),
                tap=self.tap if last else None,
                arrange=self.arrange,
            )
        self.replace_head()

    def replace_head(self) -> None:
        """Replace what stands behind the blocks."""
        model = self.model
        for norm in ("norm", "fc_norm"):
            self.quantize_norm(model, norm, norm)
        for head in self.heads:
            if isinstance(getattr(model, head, None), nn.Linear):
                self.replace(model, head, head, "head")
        self.segment("head", "head", partial(_head, model))
        self.structure.class_tokens = len(self.heads) if model.global_pool == "token" else 0

    def note_stream(self) -> None:
        """Note everything that writes and reads the one residual stream, which goes through all blocks."""
        model = self.model
        stream = StreamNotes(0, model.embed_dim)
        for place, norm in (
            ("patch_embed.norm", model.patch_embed.norm),
            ("norm_pre", getattr(model, "norm_pre", nn.Identity())),
        ):
            if not isinstance(norm, nn.Identity):
                stream.fixed(f"{self.place}{place} writes it, channel by channel")
        stream.written_by(model.patch_embed.proj)
        tokens = ("pos_embed", "cls_token", "reg_token", "dist_token")
        stream.holds(*(getattr(model, token, None) for token in tokens))
        for index, block in enumerate(model.blocks):
            note_block(stream, block, f"{self.place}blocks.{index}")
        self.note_head(stream)
        stream.end(self.structure)

    def note_head(self, stream: StreamNotes) -> None:
        """Note what reads the stream behind the blocks."""
        model = self.model
        heads = [getattr(model, name) for name in self.heads]
        layers = [head for head in heads if isinstance(head, WeightedOperation)]
        norms = {name: getattr(model, name) for name in ("norm", "fc_norm")}
        own = {name: norm for name, norm in norms.items() if not isinstance(norm, nn.Identity)}
        if layers != heads or len(own) > 1 or model.global_pool not in ("", "token", "avg"):
            stream.fixed("no linear layer alone reads its last norm")
        name, norm = next(iter(own.items()), ("norm", None))
        stream.read_by(norm, *layers, name=name)


def _head(model: Any, x: Tensor) -> Tensor:
    """Final norm and classifier; no closure, so that a copy of a wrapped model runs the copy."""
    logits: Tensor = model.forward_head(model.norm(x))
    return logits


def scaled(drop: nn.Module, gamma: Tensor | None, x: Tensor) -> Tensor:
    """Return what one half of a block adds to the stream: ``x`` [B, N, C], by LayerScale's factors if any."""
    added: Tensor = drop(x if gamma is None else gamma * x)
    return added
