"""Trainable smoothing: scales and shifts that move from activations into weights."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader, fold_into_values
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.structure import NormLink, ValueLink
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Attachment, Trainable, Unit

Link = NormLink | ValueLink

SMALLEST_SCALE = 1e-2
"""Smoothing scales nearer to zero are moved here: dividing by them would overflow."""


@dataclass(frozen=True)
class Smoothing(Trainable):
    """Scales (and shifts) that move from activations into weights: LRQuant's equivalent transformation.

    The input x of a layer becomes ``(x - z) / s``, its weight ``W diag(s)``, its bias ``b + W z``; behind a
    LayerNorm, and for the values behind the attention product, both are folded away at the end.
    Start: ``s = a / log2(2 + a)``, a the channel's largest absolute value (logarithmic activation
    equivalent), z the middle of the channel's range.

    Attributes:
        shift: train z too; never where the attention map is quantized, for its rows do not sum to 1 then.
        gain: train a factor per column of the dequantized weight (LRQuant+'s r2), folded into the
            input's scale.
    """

    rate: float = 5e-3
    cosine: bool = False
    shift: bool = True
    gain: bool = False

    def attach(self, unit: Unit) -> list[Attachment]:
        inside = set(unit.segment.operations)
        # Norms first: the values' hook on qkv must see the output with the shift restored.
        known: list[Link] = [*unit.structure.norm_links, *unit.structure.value_links]
        links = [link for link in known if link.reader in inside and _smoothable(link.reader)]
        seen = _inputs_of([link.reader for link in links], unit)
        found: list[Attachment] = []
        for link in links:
            shift = self.shift and not (isinstance(link, ValueLink) and link.attention_quantized)
            found.append(Smoothed(link, *_start(seen[link.reader.name], shift), self.gain))
        return found


def _smoothable(reader: WeightedOperation) -> bool:
    return not (reader.input_quantizer.spec.is_float and reader.weight_quantizer.spec.is_float)


@torch.no_grad()
def _inputs_of(layers: Sequence[WeightedOperation], unit: Unit) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest input of each layer per image and channel ([images, C] each)."""
    # Rows of one table: small tensors kept one by one between large ones that go leave the heap in pieces
    # that nothing large fits into any more.
    ends = {
        layer.name: layer.weight.new_empty(2, len(unit.inputs), layer.weight.shape[1])
        for layer in layers
    }
    image = 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, WeightedOperation)
        low, high = torch.aminmax(inputs[0].flatten(0, -2), dim=0)
        ends[module.name][0, image], ends[module.name][1, image] = low, high

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(watch).remove)
        for image in range(len(unit.inputs)):
            x = unit.inputs[image : image + 1]
            unit.segment.run(x.to(layers[0].weight.device) if layers else x)
    return {name: (low, high) for name, (low, high) in ends.items()}


def _start(ends: tuple[Tensor, Tensor], shift: bool) -> tuple[Tensor, Tensor | None]:
    low, high = ends
    largest = torch.maximum(low.abs(), high.abs()).amax(0)
    scale = (largest / torch.log2(2 + largest)).clamp_min(SMALLEST_SCALE)
    return scale, ((low + high) / 2).mean(0) if shift else None


class Smoothed(Attachment):
    """One pair (s, z) at work through hooks, so that nothing is rewritten before it is accepted."""

    def __init__(self, link: Link, scale: Tensor, shift: Tensor | None, gain: bool) -> None:
        self.link, self.on = link, True
        self.operation = link.reader
        self._scale = nn.Parameter(scale)
        self._shift = None if shift is None else nn.Parameter(shift)
        self._gain = nn.Parameter(torch.ones_like(scale)) if gain else None
        reader, source = link.reader, link.source
        padding = link.padding if isinstance(link, NormLink) else None
        self._handles = [
            *(
                m.register_forward_hook(self._hook(self._divide))
                for m in (source, padding)
                if m is not None
            ),
            reader.weight_quantizer.register_forward_pre_hook(self._multiply),
            reader.register_forward_hook(self._hook(self._restore)),
        ]

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in (self._scale, self._shift, self._gain) if p is not None]

    def switch(self, on: bool) -> None:
        self.on = on

    @property
    def scale(self) -> Tensor:
        """s, away from zero ([C])."""
        scale = self._scale
        nearest = torch.where(scale < 0, -SMALLEST_SCALE, SMALLEST_SCALE)
        # The gradient passes, so that a scale that was moved can leave again.
        return scale + torch.where(scale.abs() < SMALLEST_SCALE, nearest - scale, 0.0).detach()

    @property
    def divisor(self) -> Tensor:
        """What the input is divided by: s / r2 ([C])."""
        if self._gain is None:
            return self.scale
        return self.scale / self._gain.clamp_min(SMALLEST_SCALE)

    @property
    def shift(self) -> Tensor:
        """z ([C])."""
        return torch.zeros_like(self._scale) if self._shift is None else self._shift

    def _hook(self, change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return change(output) if self.on else output

        return hook

    def _divide(self, output: Tensor) -> Tensor:
        shift, divisor = self.shift, self.divisor
        if isinstance(self.link, NormLink):
            return (output - shift) / divisor
        rest = output.shape[-1] - len(shift)
        values = (output[..., rest:] - shift) / divisor
        return torch.cat([output[..., :rest], values], dim=-1)

    def _multiply(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * self.scale,) if self.on else inputs

    def _restore(self, output: Tensor) -> Tensor:
        if self._shift is None:
            return output
        return output + self.link.reader.weight @ self._shift

    @torch.no_grad()
    def detach(self, accept: bool) -> None:
        for handle in self._handles:
            handle.remove()
        if not accept:
            return
        if isinstance(self.link, NormLink):
            fold_into_reader(self.link, self.divisor, -self.shift, self.scale)
        else:
            fold_into_values(self.link, self.divisor, -self.shift, self.scale)
