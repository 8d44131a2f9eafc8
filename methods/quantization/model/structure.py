"""The structure of a wrapped model: its sites, segments, and the links along which scales can move."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.layers import (
    QuantMatMul,
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer

Output = Tensor | tuple[Tensor, ...]
"""What a model says of a batch: logits [b, classes] of a classifier, feature maps of a detector."""


class Padding(nn.Module):
    """What stands in place of missing tokens behind a LayerNorm: a value per channel, zero at first.

    Swin pads to whole windows behind the norm. A shift that is folded into norm and reader has to move
    the padded tokens too, else they would say something else to the reader than before.
    """

    value: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(channels))

    def forward(self) -> Tensor:
        """Return the value, [C]."""
        return self.value


@dataclass(frozen=True)
class NormLink:
    """A LayerNorm whose only reader is a linear layer: a scale can move from one to the other.

    Attributes:
        norm: the LayerNorm.
        reader: the linear layer.
        padding: the padded tokens between them, if there can be any.
    """

    norm: nn.LayerNorm
    reader: WeightedOperation
    padding: Padding | None = None

    @property
    def source(self) -> nn.LayerNorm:
        """What gives the activation."""
        return self.norm


@dataclass(frozen=True)
class ValueLink:
    """The last third of a qkv layer's outputs, and the projection that reads them weighted by attention.

    The rows of the attention map sum to 1, so a scale and a shift per channel can move from one to the other.
    """

    source: WeightedOperation
    context: QuantMatMul
    reader: WeightedOperation

    @property
    def attention_quantized(self) -> bool:
        """Whether the map is quantized: its rows then sum to 1 only roughly."""
        return not self.context.first_quantizer.spec.is_float


@dataclass(frozen=True)
class AttentionLink:
    """The layers around one attention, between which the channels of each head can be mixed.

    Attributes:
        name: dotted name of the attention.
        heads: number of heads.
        source: gives queries, keys and values, [3, heads, head_dim] outputs.
        reader: the projection; it reads [heads, head_dim] channels of context.
        keys_normed: queries and keys are normalised, so they are not what ``source`` gives.
        context_normed: the context is normalised before the projection.
        keys_rotated: queries and keys are rotated by their positions (RoPE), so a channel of a head cannot be
            mixed with others, and a constant on all keys is none behind the rotation.
    """

    name: str
    heads: int
    source: WeightedOperation
    reader: WeightedOperation
    keys_normed: bool = False
    context_normed: bool = False
    keys_rotated: bool = False


Layer = WeightedOperation | nn.Linear | nn.Conv2d
"""A layer with a weight; plain ones stand behind the quantized part of a model (the neck of a detector)."""


@dataclass(frozen=True)
class StreamWriter:
    """A layer that writes to a residual stream, and the factors on its outputs (LayerScale), if any, [C]."""

    layer: Layer
    scale: nn.Parameter | None = None


@dataclass(frozen=True)
class StreamReader:
    """What reads a residual stream: a LayerNorm and the layers behind it, which nothing else feeds.

    Attributes:
        norm: None where the layers read the stream as it is.
        layers: linear layers and 1 x 1 convolutions; empty where nobody reads the LayerNorm.
        padding: the padded tokens between them, if there can be any.
        tokens: how many neighbouring tokens are concatenated before the LayerNorm (patch merging).
        interleaved: the concatenated channels are ordered [C, tokens], not [tokens, C].
    """

    norm: nn.LayerNorm | None
    layers: tuple[Layer, ...]
    padding: Padding | None = None
    tokens: int = 1
    interleaved: bool = False


@dataclass(frozen=True)
class ResidualStream:
    """The tokens that blocks add to, with all that writes and reads them: their channels can be mixed.

    Attributes:
        stage: number of the stage whose blocks add to it; a model without stages has one, 0.
        width: C, its channels.
        writers: all layers whose outputs are added to it.
        tokens: parameters [..., C] that are part of it: positions, class and other learned tokens.
        readers: all that reads it.
    """

    stage: int
    width: int
    writers: tuple[StreamWriter, ...]
    tokens: tuple[nn.Parameter, ...]
    readers: tuple[StreamReader, ...]


SegmentKind = Literal["embed", "block", "merge", "head", "layer", "model"]


def as_it_is(x: Tensor) -> Tensor:
    """Return ``x``: the arrangement of a model whose attention reads the stream as it stands."""
    return x


@dataclass(frozen=True)
class Segment:
    """A consecutive piece of a model; run one after the other, the segments are the model.

    Attributes:
        name: dotted name of its module, or what it does.
        kind: ``embed`` (patches and positions), ``block``, ``merge`` (Swin), ``head`` (norm, classifier);
            ``layer``: a single operation, in units of one layer; ``model``: all of it, as one unit.
        run: maps the segment's input to its output, batch first.
        operations: the quantized operations inside, in execution order.
        stage: blocks of one number work at one resolution.
        halves: of a block, the attention and the MLP, each with its residual; else empty.
        tap: maps the segment's output to a feature map that `Structure.tail` reads; None for most.
        arrange: of the attention half of a block, maps a residual stream, or anything of its shape, to the
            layout [B, N, C] in which qkv reads it and proj writes it: as it is, or (Swin) shifted, padded
            with zeros and cut into windows, [B * windows, N, C].
    """

    name: str
    kind: SegmentKind
    run: Callable[[Tensor], Tensor]
    operations: tuple[QuantOperation, ...]
    stage: int = 0
    halves: tuple["Segment", ...] = ()
    tap: Callable[[Tensor], Tensor] | None = None
    arrange: Callable[[Tensor], Tensor] = as_it_is


@dataclass
class Structure:
    """What a family adapter found in a model, in execution order.

    Attributes:
        operations: every quantized operation.
        norm_links: the LayerNorm -> linear pairs of blocks and patch mergings.
        value_links: the qkv -> projection pairs of attention layers.
        attention_links: the layers around every attention.
        streams: the residual streams whose channels can be mixed.
        fixed_streams: in words, why other streams cannot be.
        writers: the layers that write to any residual stream, whether its channels can be mixed or not.
        normed: the layers whose outputs a norm changes before they are added to a residual stream.
        class_tokens: how many tokens, the first ones, a classifier's head reads alone; 0: it reads all.
        blocks: dotted names of the transformer blocks.
        segments: the model cut into pieces; every operation is in exactly one, but for those of a
            detector behind its backbone.
        tail: of a detector, maps the segments' taps to what the whole says (the neck); None where the
            last segment gives the model's output.
        observe: maps images to outputs that depend on every operation, where the model itself asks for
            more than images.
        features: of a detector, maps images to the feature maps that its heads read.
    """

    operations: list[QuantOperation] = field(default_factory=list)
    norm_links: list[NormLink] = field(default_factory=list)
    value_links: list[ValueLink] = field(default_factory=list)
    attention_links: list[AttentionLink] = field(default_factory=list)
    streams: list[ResidualStream] = field(default_factory=list)
    fixed_streams: list[str] = field(default_factory=list)
    writers: list[StreamWriter] = field(default_factory=list)
    normed: list[WeightedOperation] = field(default_factory=list)
    class_tokens: int = 0
    blocks: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    tail: Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None = None
    observe: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    features: Callable[[Tensor], tuple[Tensor, ...]] | None = None

    def read_of(self, operation: QuantOperation) -> int:
        """Return how many leading tokens alone are read of what ``operation`` gives; 0: all of them.

        In the last block, behind its attention, no token speaks to another any more.
        """
        blocks = [segment for segment in self.segments if segment.kind == "block"]
        behind = bool(blocks) and operation.role in ("proj", "fc1", "fc2")
        return self.class_tokens if behind and operation in blocks[-1].operations else 0

    def writes(self, layer: QuantOperation) -> bool:
        """Whether what ``layer``, the last of half a block, gives is added to the residual stream.

        Up to a LayerScale; where a norm stands between, no output of the layer is asked for by the stream.
        """
        return not any(layer is normed for normed in self.normed)

    def asked_of(self, layer: WeightedOperation, stream: Tensor) -> Tensor:
        """Return what a layer has to give so that the residual stream gets ``stream``, [..., C].

        That is ``stream`` over the factors of a LayerScale behind the layer; where one is 0 nothing that
        the layer gives arrives, and nothing is asked.
        """
        scale = next((w.scale for w in self.writers if w.layer is layer), None)
        if scale is None:
            return stream
        factors = scale.detach().to(stream.device)
        return torch.where(factors == 0, 0.0, stream / factors)

    def behind(self) -> list[QuantOperation]:
        """Return the operations that are in no segment: neck and heads of a detector."""
        inside = {op.name for segment in self.segments for op in segment.operations}
        return [op for op in self.operations if op.name not in inside]

    def layers_behind(self) -> list[WeightedOperation]:
        """Return those of `behind` that have a weight."""
        return [op for op in self.behind() if isinstance(op, WeightedOperation)]

    def before_heads(self) -> list[QuantOperation]:
        """Return the operations that `features` runs: backbone and neck; all of a classifier."""
        heads = {op.name for op in self.behind() if op.role != "neck"}
        return [op for op in self.operations if op.name not in heads]


@dataclass(frozen=True)
class Site:
    """One tensor that has a quantizer."""

    name: str
    key: str
    quantizer: Quantizer
    operation: QuantOperation

    @property
    def is_weight(self) -> bool:
        """Whether the tensor is a weight (else an activation)."""
        return self.key.endswith(".weight")


def sites_of(operations: Iterable[QuantOperation]) -> Iterator[Site]:
    """Yield the sites of some operations, the first operand before the second."""
    for operation in operations:
        for key, quantizer in operation.quantizers().items():
            yield Site(quantizer.site, key, quantizer, operation)
