"""All degrees of freedom of quantized layers, trained together: weights, scales, factors between channels.

Source: QFT (Finkelstein et al., ECCV Workshops 2022, arXiv 2212.02634). A weight is fake-quantized as

    W^ = diag(s) (clip(round(diag(s)^-1 (W diag(f) + V)) + z) - z),

s one scale per row, f one factor per column that the layer in front takes back ("doubly channel-wise").
Scales and factors are trained as logarithms, so that they stay positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.model.structure import ValueLink
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.level_rounding import TrainableLevelOffset
from vit_ptq_bench.methods.quantization.reconstruction.smoothing import Link, Smoothed
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableOffset,
    TrainableWeight,
    quantize_through,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainables import (
    Attachment,
    Trainable,
    Unit,
    WeightAttachment,
    input_moments,
    uniform_of,
)


class TrainableShift(TrainableWeight):
    """The weight it is given plus a trained one, through the rounding, on row scales that may be trained.

    Attributes:
        trained: V, of the weight's shape, 0 at the start.
        log_scale: logarithm of each scale's factor, [groups], 0 at the start.
    """

    inner: UniformQuantizer

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner)
        self.trained = nn.Parameter(torch.zeros_like(weight))
        self.log_scale = nn.Parameter(torch.zeros_like(inner.scale))
        self._start = inner.scale.clone()

    def row_scales(self) -> Tensor:
        """Return the scales, [groups]."""
        return self._start * self.log_scale.exp()

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the values of the codes of ``x`` + V; gradients reach x, V and the logarithms (LSQ)."""
        return quantize_through(
            x + self.trained, self.row_scales(), self.inner.zero_point, self.inner
        )

    def codes(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight`` + V, and give `inner` the trained scales."""
        self.inner.set_parameters(self.row_scales().detach(), self.inner.zero_point)
        return self.inner.quantize(weight + self.trained.detach())

    @torch.no_grad()
    def divide_rows(self, divisor: Tensor) -> None:
        """Follow a weight whose last rows have been divided by ``divisor`` (> 0, [rows]): codes stay."""
        rows = len(divisor)
        self.trained[-rows:].div_(divisor[:, None])
        self._start[-rows:].div_(divisor)


@dataclass(frozen=True)
class WeightShifts(Trainable):
    """What is added to each weight, through the rounding; `WeightScales` and `ChannelFactors` act on it too.

    Attributes:
        decay: weight of ``|V|^2_H / |W|^2_H`` of each layer, as that of `trainables.Weights`.
    """

    rate: float = 1e-5
    decay: float = 0.0

    def attach(self, unit: Unit) -> list[Attachment]:
        layers = unit.layers()
        moments = input_moments(layers, unit) if self.decay > 0 else {}
        return [
            _ShiftAttachment(
                op, TrainableShift(uniform_of(op), op.weight), moments.get(op.name), self.decay
            )
            for op in layers
        ]


class _ShiftAttachment(WeightAttachment):
    trainable: TrainableShift

    def __init__(
        self,
        operation: WeightedOperation,
        trainable: TrainableShift,
        moment: Tensor | None,
        weight: float,
    ) -> None:
        super().__init__(operation, trainable)
        self._moment, self._weight = moment, weight
        start = operation.weight.detach().flatten(1).square()
        self._size = None if moment is None else (start @ moment).sum().clamp_min(TINY)

    def parameters(self) -> list[nn.Parameter]:
        return [self.trainable.trained]

    def decay(self) -> Tensor | None:
        if self._moment is None or self._size is None:
            return None
        moved = self.trainable.trained.flatten(1).square() @ self._moment
        return self._weight * moved.sum() / self._size


class _ScaleAttachment(Attachment):
    """The scales of a `TrainableShift`, which takes them itself when it is taken out."""

    def __init__(self, operation: QuantOperation, trainable: TrainableShift) -> None:
        self.operation, self._trainable = operation, trainable

    def parameters(self) -> list[nn.Parameter]:
        return [self._trainable.log_scale]


class _WeightScale(Attachment):
    """The logarithm of the factor on the scales of a weight that is trained."""

    def __init__(self, operation: WeightedOperation, weight: TrainableOffset) -> None:
        self.operation, self._weight = operation, weight
        self._logarithm = nn.Parameter(torch.zeros_like(weight.inner.scale))
        weight.log_scale = self._logarithm

    def parameters(self) -> list[nn.Parameter]:
        return [self._logarithm]

    def detach(self, accept: bool) -> None:
        inner = self._weight.inner
        if accept:
            inner.set_parameters(inner.scale * self._logarithm.detach().exp(), inner.zero_point)
        self._weight.log_scale = None


@dataclass(frozen=True)
class WeightScales(Trainable):
    """Logarithms of the scales of weights that are trained: the rate is a share of each scale.

    Stands behind `Weights` or `WeightShifts` in a recipe: what comes last is taken out first, and codes are
    made on the scales.
    """

    rate: float = 1e-4

    def attach(self, unit: Unit) -> list[Attachment]:
        """Raises `MethodError` where a weight that is trained is on a table of levels."""
        found: list[Attachment] = []
        for operation in unit.segment.operations:
            if not isinstance(operation, WeightedOperation):
                continue
            weight = operation.weight_quantizer
            if isinstance(weight, TrainableLevelOffset):
                raise MethodError(
                    f"{weight.site}: only scales of uniform weight quantizers can be trained, "
                    f"not of {weight.spec.scheme}"
                )
            if isinstance(weight, TrainableShift):
                found.append(_ScaleAttachment(operation, weight))
            elif isinstance(weight, TrainableOffset) and weight.log_scale is None:
                found.append(_WeightScale(operation, weight))
        return found


@dataclass(frozen=True)
class ChannelFactors(Trainable):
    """Logarithms of factors that move between channels, from an activation into the layer that reads it.

    Behind a LayerNorm, and between the values and the projection, channel c is divided by f_c in the layer
    in front and column c of the reader multiplied by it; both are folded away at the end. In full precision
    nothing changes. Stands behind `WeightShifts` in a recipe.
    """

    rate: float = 1e-4

    def attach(self, unit: Unit) -> list[Attachment]:
        inside = set(unit.segment.operations)
        links: list[Link] = [*unit.structure.norm_links, *unit.structure.value_links]
        return [
            _Factors(link) for link in links if link.reader in inside and _divisible(link, inside)
        ]


def _divisible(link: Link, inside: set[QuantOperation]) -> bool:
    """Whether factors can be folded without a change of codes: values need a scale for each row."""
    if isinstance(link, ValueLink):
        quantizer = link.source.weight_quantizer
        per_row = quantizer.spec.is_float or quantizer.spec.granularity == "channel"
        if link.source not in inside or not per_row:
            return False
    reader = link.reader
    return not (reader.input_quantizer.spec.is_float and reader.weight_quantizer.spec.is_float)


class _Factors(Smoothed):
    """Factors of one link, at work through hooks until they are folded away."""

    def __init__(self, link: Link) -> None:
        channels = link.reader.weight.shape[1]
        super().__init__(link, link.reader.weight.new_zeros(channels), None, False)

    @property
    def scale(self) -> Tensor:
        """f, [C]."""
        return self._scale.exp()

    @torch.no_grad()
    def detach(self, accept: bool) -> None:
        super().detach(accept)
        if accept and isinstance(self.link, ValueLink):
            quantizer = self.link.source.weight_quantizer
            if isinstance(quantizer, TrainableShift):
                quantizer.divide_rows(self.scale)
