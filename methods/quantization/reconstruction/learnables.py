"""What a recipe can learn in a unit, and how it is put in and taken out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.errors import MethodError
from methods.quantization.calibration import Rule, calibrate_sites
from methods.quantization.folding import fold_into_reader, fold_into_values
from methods.quantization.layers import QuantMatMul, QuantOperation, WeightedOperation
from methods.quantization.model import NormLink, Segment, Site, Structure, ValueLink, sites_of
from methods.quantization.quantizers import Quantizer, UniformQuantizer
from methods.quantization.reconstruction.learned import (
    LearnedClip,
    LearnedOffset,
    LearnedRange,
    LearnedRounding,
    LearnedStep,
    LearnedWeight,
)

Link = NormLink | ValueLink

SMALLEST_SCALE = 1e-2
"""Smoothing scales nearer to zero are moved here: dividing by them would overflow."""


@dataclass(frozen=True)
class Unit:
    """What is reconstructed at once.

    Attributes:
        segment: the piece of the model.
        structure: of the whole model; its links say where scales can move.
        inputs: the full-precision inputs of the segment for all calibration images.
        quantized: its inputs from the quantized prefix, for the images that ranges are taken from
            (`calibration.range_images`).
        generator: for random drops.
    """

    segment: Segment
    structure: Structure
    inputs: Tensor
    quantized: Tensor
    generator: torch.Generator

    def layers(self) -> list[WeightedOperation]:
        """Return the operations with a weight that is quantized."""
        return [
            op
            for op in self.segment.operations
            if isinstance(op, WeightedOperation) and not op.weight_quantizer.spec.is_float
        ]


class Attachment:
    """Learned quantities that stand in one place of a unit until they are taken out."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer moves."""
        return []

    def switch(self, on: bool) -> None:
        """Switch on, or off so that the unit is in full precision."""

    def keep(self, probability: float) -> None:
        """Set the probability that an activation is quantized."""

    def regulariser(self, exponent: float) -> Tensor | None:
        """Return a penalty that joins the loss, or None."""
        return None

    def detach(self, accept: bool) -> None:
        """Put back what was there, with what was learned if ``accept``."""


@dataclass(frozen=True)
class Learnable:
    """One kind of learned quantity, with its learning rate.

    Attributes:
        rate: Adam's learning rate; 0 keeps the start values.
        cosine: whether the rate falls to 0 as half a cosine.
    """

    rate: float = 0.0
    cosine: bool = True

    def attach(self, unit: Unit) -> list[Attachment]:
        """Put it into every place of ``unit`` where it belongs."""
        raise AssertionError("defined by each kind")


class _WeightAttachment(Attachment):
    def __init__(self, operation: WeightedOperation, learned: LearnedWeight) -> None:
        self.operation, self.learned = operation, learned
        operation.weight_quantizer = learned

    def parameters(self) -> list[nn.Parameter]:
        return list(self.learned.parameters(recurse=False))

    def switch(self, on: bool) -> None:
        self.learned.active = on

    def regulariser(self, exponent: float) -> Tensor | None:
        return self.learned.regulariser(exponent)

    def detach(self, accept: bool) -> None:
        self.operation.weight_quantizer = self.learned.inner
        if accept:
            codes = self.learned.codes(self.operation.weight.detach())
            self.operation.set_codes(codes)


def _uniform(operation: WeightedOperation) -> UniformQuantizer:
    quantizer = operation.weight_quantizer
    if type(quantizer) is not UniformQuantizer:
        raise MethodError(
            f"{quantizer.site}: only uniform weight quantizers can be learned, "
            f"not {quantizer.spec.scheme}"
        )
    return quantizer


@dataclass(frozen=True)
class Roundings(Learnable):
    """AdaRound: whether each weight is rounded up or down (Nagel et al. 2020)."""

    rate: float = 1e-3
    cosine: bool = False

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _WeightAttachment(op, LearnedRounding(_uniform(op), op.weight)) for op in unit.layers()
        ]


@dataclass(frozen=True)
class Weights(Learnable):
    """The weights themselves, through the rounding (straight-through; I&S-ViT)."""

    rate: float = 4e-5

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _WeightAttachment(op, LearnedOffset(_uniform(op), op.weight)) for op in unit.layers()
        ]


@dataclass(frozen=True)
class Clipping(Learnable):
    """Weight clipping (OmniQuant); with ``gain`` also a factor per row (LRQuant+'s r1)."""

    rate: float = 1e-2
    cosine: bool = False
    gain: bool = False

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _WeightAttachment(op, LearnedClip(_uniform(op), op.weight, self.gain))
            for op in unit.layers()
        ]


class _ActivationAttachment(Attachment):
    def __init__(
        self, operation: QuantOperation, name: str, learned: LearnedStep | LearnedRange
    ) -> None:
        self.operation, self.name, self.learned = operation, name, learned
        setattr(operation, name, learned)

    def switch(self, on: bool) -> None:
        self.learned.active = on


class _StepAttachment(_ActivationAttachment):
    learned: LearnedStep

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.learned.step is None else [self.learned.step]

    def keep(self, probability: float) -> None:
        self.learned.keep = probability

    def detach(self, accept: bool) -> None:
        if not accept:
            self.learned.step = None
        setattr(self.operation, self.name, self.learned.finish())


class _RangeAttachment(_ActivationAttachment):
    def detach(self, accept: bool) -> None:
        self.learned.inner.active = True
        setattr(self.operation, self.name, self.learned.inner)


@dataclass(frozen=True)
class Steps(Learnable):
    """Steps of the activation quantizers (LSQ); the drops of QDrop happen here too."""

    rate: float = 4e-5

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _StepAttachment(op, name, LearnedStep(quantizer, unit.generator))
            for op, name, quantizer in _activations(unit.segment)
        ]


@dataclass(frozen=True)
class BatchRanges(Learnable):
    """Nothing to learn: activations are quantized over the range of each batch while others learn.

    Attributes:
        rule: for static per-tensor activations, what will calibrate them afterwards: it is asked once
            before, on the unit's quantized input, and the share of the range that it keeps is kept of
            each batch's range. Without it smoothing would learn for wider ranges than it will get.
    """

    rule: Rule | None = None

    def attach(self, unit: Unit) -> list[Attachment]:
        shares = {} if self.rule is None else _kept_shares(unit, self.rule)
        return [
            _RangeAttachment(op, name, LearnedRange(quantizer, shares.get(quantizer.site)))
            for op, name, quantizer in _activations(unit.segment)
        ]


def _kept_shares(unit: Unit, rule: Rule) -> dict[str, tuple[Tensor, Tensor]]:
    """Which shares of the lowest and the highest value a rule keeps, per static per-tensor site."""
    shares: dict[str, tuple[Tensor, Tensor]] = {}

    def ask(site: Site, x: Tensor) -> None:
        rule(site, x)
        quantizer = site.quantizer
        if isinstance(quantizer, UniformQuantizer) and quantizer.axis is None:
            codes = torch.tensor(quantizer.code_range, device=x.device)
            kept = quantizer.dequantize(codes.to(torch.int32))
            ends = torch.stack(torch.aminmax(x.detach()))
            low, high = (kept / torch.where(ends == 0, 1.0, ends)).clamp(0, 1)
            shares[site.name] = (low, high)

    sites = [site for site in sites_of(unit.segment.operations) if not site.is_weight]
    calibrate_sites(sites, lambda: unit.segment.run(unit.quantized), ask, sequential=True)
    for site in sites:
        site.quantizer.active = False
    return shares


def _activations(segment: Segment) -> list[tuple[QuantOperation, str, Quantizer]]:
    """Every quantized activation: operation, attribute, quantizer."""
    found = []
    for operation in segment.operations:
        pair = isinstance(operation, QuantMatMul)
        for name in ("first_quantizer", "second_quantizer") if pair else ("input_quantizer",):
            quantizer = getattr(operation, name)
            if not quantizer.spec.is_float:
                found.append((operation, name, quantizer))
    return found


@dataclass(frozen=True)
class Smoothing(Learnable):
    """Scales (and shifts) that move from activations into weights: LRQuant's equivalent transformation.

    The input x of a layer becomes ``(x - z) / s``, its weight ``W diag(s)``, its bias ``b + W z``; behind a
    LayerNorm, and for the values behind the attention product, both are folded away at the end.
    Start: ``s = a / log2(2 + a)``, a the channel's largest absolute value (logarithmic activation
    equivalent), z the middle of the channel's range.

    Attributes:
        shift: learn z too; never where the attention map is quantized, for its rows do not sum to 1 then.
        gain: learn a factor per column of the dequantized weight (LRQuant+'s r2), folded into the
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
            found.append(_Smoothed(link, *_start(seen[link.reader.name], shift), self.gain))
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


class _Smoothed(Attachment):
    """One pair (s, z) at work through hooks, so that nothing is rewritten before it is accepted."""

    def __init__(self, link: Link, scale: Tensor, shift: Tensor | None, gain: bool) -> None:
        self.link, self.on = link, True
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
