"""Search of the grids of attention maps, uniform or logarithmic, by the error of attention x value."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.codebook_search import (
    ENTRIES,
    SortedEntries,
    search_codebook,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.calibration.range_search import better, sampled
from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.codebook import Codebook
from vit_ptq_bench.methods.quantization.quantizers.log_grid import LogGridQuantizer
from vit_ptq_bench.methods.quantization.quantizers.tangent import TangentQuantizer
from vit_ptq_bench.methods.quantization.search.candidates import Candidates, Grid, best_index
from vit_ptq_bench.methods.quantization.search.scores import SquaredErrorMetric, likeness

SQUARED_ERROR = SquaredErrorMetric()

MAP_GRID = Grid(alpha=1 / 128, beta=129 / 128, steps=128)
"""1/128 to the whole of the extreme values: most of an attention map is far below its largest entry."""


LOG_IMAGES = 3
"""Images that a logarithmic grid is chosen on: it has two numbers, and a map has 100,000 entries an image."""

IMAGE_ENTRIES = 116_427
"""Entries of an image of ViT-Tiny, three heads of 197 x 197: of smaller maps, windows, more are taken."""


@dataclass(frozen=True)
class LogGrid:
    """Candidates of a logarithmic grid: all pairs of these.

    Attributes:
        steps: per octave; None: `LOG_STEPS`, from five bits on `MANY_LOG_STEPS` too.
        shares: largest levels, as shares of the largest entry.
    """

    steps: tuple[float, ...] | None = None
    shares: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)

    def steps_at(self, bits: int) -> tuple[float, ...]:
        """Return the steps per octave that are tried at a number of bits."""
        if self.steps is not None:
            return self.steps
        return LOG_STEPS if bits <= FEW_BITS else LOG_STEPS + MANY_LOG_STEPS


LOG_STEPS = (0.5, 0.75, 1.0, 1.5, 2.0)

MANY_LOG_STEPS = (3.0, 4.0, 6.0, 8.0)

FEW_BITS = 4
"""Bits up to which finer grids than `LOG_STEPS` have too few octaves."""

LOG_MAP_GRID = LogGrid()

POWERS = (0.0, 0.25, 0.5, 0.75)
"""An entry a of a map counts as a^-p in the choice of its levels: the larger p, the more small ones count."""


@torch.no_grad()
def search_maps(
    operations: Iterable[QuantOperation],
    run: Callable[[], Any],
    log_grid: LogGrid = LOG_MAP_GRID,
) -> None:
    """Set the grids of attention maps by the squared error of attention x value, while ``run`` runs.

    Only of static quantizers of form ``uniform``, ``log``, ``adalog`` or a codebook. A map's
    values lie so far apart that a percentile of them, or their own squared error, says little of what the
    product needs: at 4 bits it prefers log-sqrt2, the worst of the logarithmic grids. Searching the values
    and the product of queries and keys too gave no more (ViT-Tiny, W4A4).

    Args:
        operations: among which the products are.
        run: sends images through them; products that come later see what was chosen for earlier ones.
        log_grid: candidates of the logarithmic forms.
    """

    def log_map(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(product, QuantMatMul)
        search_log_map(product, inputs, log_grid)

    with ExitStack() as stack:
        for operation in operations:
            if not isinstance(operation, QuantMatMul):
                continue
            if has_uniform_map(operation):
                stack.callback(operation.register_forward_pre_hook(_search_map).remove)
            elif has_log_map(operation):
                stack.callback(operation.register_forward_pre_hook(log_map).remove)
            elif has_codebook_map(operation):
                stack.callback(operation.register_forward_pre_hook(_search_codebook).remove)
        run()


def has_uniform_map(product: QuantMatMul) -> bool:
    """Whether a product's first operand is an attention map with a static uniform quantizer."""
    spec = product.first_quantizer.spec
    uniform = spec.scheme == "uniform" and not spec.is_float and not spec.dynamic
    return product.role == "context" and uniform


def has_log_map(product: QuantMatMul) -> bool:
    """Whether a product's first operand is an attention map with a logarithmic grid that is calibrated."""
    quantizer = product.first_quantizer
    static = not quantizer.spec.is_float and not quantizer.spec.dynamic
    return product.role == "context" and static and isinstance(quantizer, LogGridQuantizer)


def has_codebook_map(product: QuantMatMul) -> bool:
    """Whether a product's first operand is an attention map on a codebook."""
    quantizer = product.first_quantizer
    static = not quantizer.spec.is_float and isinstance(quantizer, Codebook)
    return product.role == "context" and static


def _search_codebook(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Choose the levels that are best for entries weighted by one of `POWERS`, by the product's error."""
    assert isinstance(product, QuantMatMul)
    quantizer = product.first_quantizer
    assert isinstance(quantizer, Codebook)
    entries = SortedEntries.of(sampled(grouped(inputs[0], quantizer), ENTRIES))
    rows = max(LOG_IMAGES, LOG_IMAGES * IMAGE_ENTRIES // inputs[0][0].numel())
    first, second = (x[:: -(-len(x) // rows)] for x in inputs)
    recording = Recording((first, second), product.compute(first, second), None)
    values = product.second_quantizer(second)
    tried = []
    for power in POWERS:
        search_codebook(quantizer, entries, power)
        estimate = product.compute(quantizer.fake_quantize(first), values)
        score = likeness(SQUARED_ERROR, recording, estimate, 1, product.output_axis)
        tried.append((float(score.sum()), quantizer.levels, quantizer.scale))
    _, levels, scale = max(tried, key=lambda one: one[0])
    quantizer.set_levels(levels[-quantizer.choices :], scale)


@torch.no_grad()
def search_log_map(
    product: QuantMatMul,
    inputs: tuple[Tensor, ...],
    grid: LogGrid = LOG_MAP_GRID,
    images: int = LOG_IMAGES,
) -> None:
    """Choose base and largest level of a map, per scale of its quantizer, by the error of attention x value.

    Args:
        product: of map and values; ``has_log_map``.
        inputs: map [B, heads, N, N] and values [B, heads, N, K], B images, or windows of all images. Values
            count as they are quantized, if their quantizer is calibrated and active.
        grid: the candidates.
        images: that are looked at, taken at one stride, as far as they have `IMAGE_ENTRIES` a piece.
    """
    quantizer = product.first_quantizer
    assert isinstance(quantizer, LogGridQuantizer)
    rows = max(images, images * IMAGE_ENTRIES // inputs[0][0].numel())
    choose_levels(product, quantizer, inputs, rows, grid.steps_at(quantizer.spec.bits), grid.shares)


def choose_levels(
    product: QuantMatMul,
    quantizer: LogGridQuantizer | TangentQuantizer,
    inputs: tuple[Tensor, ...],
    rows: int,
    shapes: Sequence[float],
    shares: Sequence[float],
) -> None:
    """Choose the two numbers of a map's levels, per scale, by the error of attention x value.

    Args:
        product: of map and values.
        quantizer: of the map.
        inputs: map [B, heads, N, N] and values [B, heads, N, K].
        rows: of the B that are looked at, taken at one stride.
        shapes: numbers that are tried for what `set_levels` takes second: steps per octave, or an angle.
        shares: largest levels that are tried, as shares of the largest entry.
    """
    top = grouped(inputs[0], quantizer).amax(dim=1).clamp_min(TINY)
    first, second = (x[:: -(-len(x) // rows)] for x in inputs)
    recording = Recording((first, second), product.compute(first, second), None)
    values = product.second_quantizer(second)
    best = torch.full_like(top, torch.inf), top, top
    for shape in shapes:
        for share in shares:
            found = top * share, torch.full_like(top, shape)
            quantizer.set_levels(*found)
            estimate = product.compute(quantizer.fake_quantize(first), values)
            score = likeness(SQUARED_ERROR, recording, estimate, len(top), product.output_axis)
            best = better(best, (-score, *found))
    quantizer.set_levels(*best[1:])


def _search_map(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Choose once, with the values quantized as they are calibrated, if they are."""
    assert isinstance(product, QuantMatMul)
    recording = Recording(inputs, product.compute(*inputs), None)
    values = product.second_quantizer(inputs[1])
    own = Candidates(product.first_quantizer, inputs[0], MAP_GRID)

    def score(index: Tensor) -> Tensor:
        own.apply(index)
        estimate = product.compute(own.quantizer.fake_quantize(inputs[0]), values)
        return likeness(SQUARED_ERROR, recording, estimate, own.groups, product.output_axis)

    own.choose(best_index(score, own.count, own.groups, "coarse-to-fine", values.device))
