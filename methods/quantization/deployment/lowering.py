"""A quantized model with its quantizers as operators that a runtime knows, as far as there are some."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.deployment.integers import IntegerGrid, integer_grid
from vit_ptq_bench.methods.quantization.deployment.operators import (
    CODES,
    dequantize,
    quantize_dequantize,
)
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantLayerNorm,
    QuantLinear,
    QuantMatMul,
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Output
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import spread
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.levels import TableQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

NO_DOUBLE = "QuantizeLinear takes no float64"
"""Why no activation has an operator in a file that computes in float64."""


@dataclass(frozen=True)
class LoweredSite:
    """What became of one site.

    Attributes:
        site: its name in the model.
        key: its key in the bit table.
        bits, scheme: of its quantizer.
        integers: integer type of the operator in its place; None: arithmetic in floating point.
        stored: whether integers are stored for it, as for every weight that has codes.
        reason: why there is no operator.
    """

    site: str
    key: str
    bits: int
    scheme: str
    integers: str | None
    stored: bool = False
    reason: str = ""


class OperatorQuantizer(Quantizer):
    """An activation's quantizer as one operator; takes the place of the quantizer that it is made of."""

    zero_point: Tensor

    def __init__(self, quantizer: UniformQuantizer, grid: IntegerGrid) -> None:
        super().__init__(quantizer.spec, quantizer.site, quantizer.axis)
        self.grid = grid
        self.active = True
        self.scale = grid.scale
        self.register_buffer("zero_point", grid.zero_point.to(CODES[grid.integers]))

    def fake_quantize(self, x: Tensor) -> Tensor:
        axis = (self.axis or 0) % x.dim()
        scale, zero_point = (_repeated(v, x.shape[axis]) for v in (self.scale, self.zero_point))
        ends = self.grid.low, self.grid.high
        return quantize_dequantize(
            x, scale, zero_point, axis, ends, self.grid.integers, self.grid.clips
        )


class CountedLevels(Quantizer):
    """In place of an activation's table of levels: the borders below a number are counted.

    What the table's own look-ups are made of, runtimes do not have.
    """

    even: Tensor
    odd: Tensor
    levels: Tensor

    def __init__(self, quantizer: TableQuantizer) -> None:
        super().__init__(quantizer.spec, quantizer.site, quantizer.axis)
        self.active = True
        self.scale = quantizer.scale
        (levels,) = quantizer.table()
        borders = (levels[1:] + levels[:-1]) / 2
        self.register_buffer("even", borders[0::2])
        self.register_buffer("odd", borders[1::2])
        self.register_buffer("levels", levels)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest values; half-way between two levels that of the even place, as in the table."""
        ratio = (x * spread(self.scale.reciprocal(), x, self.axis)).unsqueeze(-1)
        places = (ratio > self.even).sum(-1) + (ratio >= self.odd).sum(-1)
        levels = self.levels.index_select(0, places.flatten()).view(x.shape)
        return levels * spread(self.scale, x, self.axis)


class StoredWeight(Quantizer):
    """In place of a weight's quantizer: the weight is given as codes and comes out as numbers."""

    def __init__(self, operation: WeightedOperation) -> None:
        quantizer = operation.weight_quantizer
        super().__init__(quantizer.spec, quantizer.site, quantizer.axis)
        self.active = True
        self.scale = quantizer.scale
        self.quantizer = cast(CodedQuantizer, quantizer)
        self.offset = operation.code_offset

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return what codes (uint8, from 0 up) stand for, numbers of float32 in any arithmetic."""
        values: Tensor = self.quantizer.dequantize(x.to(torch.int32) + self.offset)
        return values.float().to(values.dtype)

    def low_order(self, values: Tensor) -> Tensor | None:
        return self.quantizer.low_order(values)


class StoredLinear(nn.Module):
    """A linear layer whose weight is stored as integers, [C_in, C_out] as a runtime multiplies by it.

    Args:
        operation: the layer, frozen.
        grid: of its weight.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, operation: QuantLinear, grid: IntegerGrid) -> None:
        super().__init__()
        self.input_quantizer = operation.input_quantizer
        self.integers, self.bias = grid.integers, operation.bias
        codes = _grid_codes(operation, grid)
        self.register_buffer("codes", codes.t().contiguous())
        self.register_buffer("scale", _repeated(grid.scale, len(codes)))
        zero_point = grid.zero_point.to(CODES[grid.integers])
        self.register_buffer("zero_point", _repeated(zero_point, operation.weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x`` [..., C_in]."""
        weight = dequantize(self.codes, self.scale, self.zero_point, 1, self.integers)
        product: Tensor = self.input_quantizer(x) @ weight
        return product if self.bias is None else product + self.bias


class OperatorWeight(Quantizer):
    """In place of a convolution's weight quantizer: one operator from codes to numbers."""

    zero_point: Tensor

    def __init__(self, quantizer: Quantizer, grid: IntegerGrid, channels: int) -> None:
        super().__init__(quantizer.spec, quantizer.site, quantizer.axis)
        self.active, self.integers = True, grid.integers
        self.scale = _repeated(grid.scale, channels)
        self.register_buffer("zero_point", _repeated(grid.zero_point.to(torch.int32), channels))

    def fake_quantize(self, x: Tensor) -> Tensor:
        return dequantize(x, self.scale, self.zero_point, 0, self.integers)


class QuantizedGraph(nn.Module):
    """What of a quantized model depends on the images alone: all of a classifier, a detector's feature maps.

    Attributes:
        says: "logits" or "features".
    """

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__()
        self.model = model
        self.says = "logits" if model.structure.features is None else "features"

    def forward(self, images: Tensor) -> Output:
        """Return logits [b, classes], or the neck's feature maps, of ``images`` [b, 3, H, W]."""
        features = self.model.structure.features
        output: Output = self.model(images) if features is None else features(images)
        return output


def lower(
    model: QuantizedModel, weights: tuple[str, ...], activations: tuple[str, ...] | None
) -> tuple[QuantizedModel, list[LoweredSite]]:
    """Return a copy of a quantized model with operators where there are some, and what became of each site.

    The copy computes the same values to float rounding (a quotient in place of the product with a
    reciprocal; in float64 next to nothing of that is left), and works with `torch.export`. Of a detector
    backbone and neck are lowered: what its heads compute depends on what they find.

    Args:
        model: what `Method.quantize` or `load_quantized` returned.
        weights, activations: integer types that may stand in the file, the narrowest first; None:
            activations are computed as they are simulated, as in float64, which no operator takes.
    """
    lowered = copy.deepcopy(model)
    sites = [
        site
        for operation in lowered.structure.before_heads()
        for site in _lower_operation(lowered.module, operation, weights, activations)
    ]
    return lowered.eval(), sites


def _lower_operation(
    module: nn.Module,
    operation: QuantOperation,
    weights: tuple[str, ...],
    activations: tuple[str, ...] | None,
) -> Iterator[LoweredSite]:
    for name, (key, quantizer) in zip(
        _attributes(operation), operation.quantizers().items(), strict=True
    ):
        if quantizer.spec.is_float:
            continue
        if name == "weight_quantizer":
            yield _lower_weight(module, cast(WeightedOperation, operation), key, weights)
            continue
        grid = NO_DOUBLE if activations is None else integer_grid(quantizer, activations)
        if isinstance(grid, IntegerGrid):
            setattr(operation, name, OperatorQuantizer(cast(UniformQuantizer, quantizer), grid))
        elif isinstance(quantizer, TableQuantizer) and quantizer.table().shape[0] == 1:
            setattr(operation, name, CountedLevels(quantizer))
        yield _site(quantizer, key, grid)


def _attributes(operation: QuantOperation) -> tuple[str, ...]:
    """Names of an operation's quantizers, in the order of `QuantOperation.quantizers`."""
    if isinstance(operation, QuantMatMul):
        return "first_quantizer", "second_quantizer"
    if isinstance(operation, QuantLayerNorm):
        return ("input_quantizer",)
    return "input_quantizer", "weight_quantizer"


def _lower_weight(
    module: nn.Module, operation: WeightedOperation, key: str, types: tuple[str, ...]
) -> LoweredSite:
    quantizer = operation.weight_quantizer
    if operation.codes is None:
        return _site(quantizer, key, f"the form {quantizer.spec.scheme!r} has no codes to store")
    grid = integer_grid(quantizer, types)
    if isinstance(grid, str):
        operation.weight_quantizer = StoredWeight(operation)
        _store(operation, operation.codes)
        return _site(quantizer, key, grid, stored=True)
    if isinstance(operation, QuantLinear):
        parent, _, child = operation.name.rpartition(".")
        setattr(module.get_submodule(parent), child, StoredLinear(operation, grid))
    else:
        codes = _grid_codes(operation, grid)
        operation.weight_quantizer = OperatorWeight(quantizer, grid, len(codes))
        _store(operation, codes)
    return _site(quantizer, key, grid, stored=True)


def _site(
    quantizer: Quantizer, key: str, grid: IntegerGrid | str, stored: bool = False
) -> LoweredSite:
    spec = quantizer.spec
    found = isinstance(grid, IntegerGrid)
    return LoweredSite(
        quantizer.site,
        key,
        spec.bits,
        spec.scheme,
        grid.integers if isinstance(grid, IntegerGrid) else None,
        stored,
        "" if found else str(grid),
    )


def _store(operation: WeightedOperation, codes: Tensor) -> None:
    """Let an operation decode its weight at every call: the codes are the weight."""
    operation.weight = nn.Parameter(codes, requires_grad=False)
    operation.codes = None


def _grid_codes(operation: WeightedOperation, grid: IntegerGrid) -> Tensor:
    """The weight's codes in the grid's integer type, [C_out, ...]."""
    assert operation.codes is not None
    codes = operation.codes.to(torch.int32) + operation.code_offset + grid.offset
    return codes.to(CODES[grid.integers])


def _repeated(values: Tensor, size: int) -> Tensor:
    """One value per entry of an axis, where there are fewer for blocks of it; a single one stays."""
    if values.numel() in (1, size):
        return values
    return values.repeat_interleave(size // values.numel())
