"""Search of operand scales by the error of the operation's output.

For one operation the scales of its two operands are searched in turn: for each candidate the operand
is quantized, the operation is recomputed with the other operand as it is quantized now, and the output
is compared with the full-precision one.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.quantization.capture import Record
from methods.quantization.layers import QuantMatMul, QuantOperation
from methods.quantization.quantizers import Quantizer, TwinSoftmaxQuantizer
from methods.quantization.ranges import grouped
from methods.quantization.scores import (
    CosineMetric,
    DirectScore,
    GramCosine,
    Metric,
    Operand,
    Score,
    SquaredErrorMetric,
    by_row,
    heaviest,
    likeness,
    rows_of,
)

SearchMode = Literal["coarse-to-fine", "exhaustive"]
COARSE_STRIDE = 8
NEAR_STRIDE = 4

FEW_TOKENS = 256
"""Tokens of a layer up to which all are looked at; the search costs little there."""


@dataclass(frozen=True)
class Grid:
    """A linear grid of factors on the start value: ``alpha + i (beta - alpha) / steps``, i < steps."""

    alpha: float
    beta: float
    steps: int = 100

    def factors(self) -> Tensor:
        """Return the factors, [steps]."""
        return self.alpha + torch.arange(self.steps) * ((self.beta - self.alpha) / self.steps)


class Candidates:
    """The candidate settings of one quantizer, numbered 0 .. count - 1, chosen per group.

    For the quantizer after softmax they are its splits, for every other one factors on its range.
    """

    def __init__(self, quantizer: Quantizer, x: Tensor, grid: Grid) -> None:
        self.quantizer = quantizer
        self.low, self.high = torch.aminmax(grouped(x, quantizer), dim=1)
        self.factors = grid.factors().to(x.device)
        self.by_split = isinstance(quantizer, TwinSoftmaxQuantizer)
        self.count = TwinSoftmaxQuantizer.SPLITS if self.by_split else grid.steps
        self.groups = len(self.low)
        self.chosen: Tensor | None = None
        quantizer.set_range(self.low, self.high)

    def apply(self, index: Tensor) -> None:
        """Set the quantizer to candidate ``index`` ([groups], int64)."""
        if isinstance(self.quantizer, TwinSoftmaxQuantizer):
            self.quantizer.set_split(index)
        else:
            factor = self.factors[index]
            self.quantizer.set_range(self.low * factor, self.high * factor)

    def choose(self, index: Tensor) -> bool:
        """Keep candidate ``index``; return whether that differs from the choice before."""
        changed = self.chosen is None or not torch.equal(self.chosen, index)
        self.chosen = index
        self.apply(index)
        return changed


def best_index(
    score: Callable[[Tensor], Tensor],
    count: int,
    groups: int,
    mode: SearchMode,
    device: torch.device,
    start: Tensor | None = None,
) -> Tensor:
    """Return, per group, the candidate of highest score ([groups], int64).

    ``exhaustive`` tries all. ``coarse-to-fine`` tries every 8th candidate, then the 14 around the best:
    scores are nearly unimodal in the scale. Where an earlier round has chosen ``start`` ([groups]), it tries
    that, those 4 away, and then the 6 around the best of them.
    """
    if mode == "exhaustive":
        return _best_of(score, _all(range(count), groups, device))[0]
    if start is not None:
        stride, coarse = NEAR_STRIDE, _around(start, (-NEAR_STRIDE, 0, NEAR_STRIDE), count)
    else:
        stride = 1 if count <= 2 * COARSE_STRIDE else COARSE_STRIDE
        coarse = _all(range(0, count, stride), groups, device)
    index, value = _best_of(score, coarse)
    fine = _around(index, [step for step in range(1 - stride, stride) if step], count)
    if not fine:
        return index
    fine_index, fine_value = _best_of(score, fine)
    return torch.where(fine_value > value, fine_index, index)


def _all(indices: Iterable[int], groups: int, device: torch.device) -> list[Tensor]:
    return [torch.full((groups,), i, device=device) for i in indices]


def _around(index: Tensor, steps: Iterable[int], count: int) -> list[Tensor]:
    return [(index + step).clamp(0, count - 1) for step in steps]


def _best_of(score: Callable[[Tensor], Tensor], indices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    scores = torch.stack([score(index) for index in indices])
    value, position = scores.max(dim=0)
    return torch.stack(list(indices)).gather(0, position[None]).squeeze(0), value


@torch.no_grad()
def search_operation(
    operation: QuantOperation,
    record: Record,
    metric: Metric,
    grid: Grid,
    rounds: int,
    mode: SearchMode = "coarse-to-fine",
) -> None:
    """Set the quantizers of both operands by alternating search.

    Weights come before inputs, the first operand of an attention product before the second; the split
    after softmax is searched with the other operand in full precision. An operand is searched again only if
    the other has changed since, and rounds end once nothing does. Operands left in floating point, or
    dynamic, are not searched. Unless ``mode`` is ``exhaustive`` a weighted metric looks at the rows that
    hold nearly all of the squared gradient (`heaviest`).
    """
    tensors = operation.operands(record.inputs)
    quantizers = list(operation.quantizers().values())
    candidates = {
        i: Candidates(quantizers[i], tensors[i], grid)
        for i in range(2)
        if not quantizers[i].spec.is_float and not quantizers[i].spec.dynamic
    }
    if metric.by_token:
        record = by_row(operation, record)
    if metric.weighted and mode != "exhaustive" and not _few_tokens(record):
        assert record.squared_gradient is not None
        record = rows_of(record, heaviest(record.squared_gradient))
    order = [
        i for i in ((0, 1) if isinstance(operation, QuantMatMul) else (1, 0)) if i in candidates
    ]
    seen: dict[int, Tensor | None] = {}
    for _ in range(rounds):
        changes = [
            _search_operand(operation, record, metric, candidates, i, mode, seen) for i in order
        ]
        if not any(changes):
            return


def _few_tokens(record: Record) -> bool:
    """Whether the rows are tokens and so few that none can be spared: a head sees one per image."""
    return record.output.dim() == 2 and len(record.output) <= FEW_TOKENS


def _search_operand(
    operation: QuantOperation,
    record: Record,
    metric: Metric,
    candidates: dict[int, Candidates],
    which: int,
    mode: SearchMode,
    seen: dict[int, Tensor | None],
) -> bool:
    """Search one operand; ``seen`` is what the other was when each was searched last."""
    own, other = candidates[which], candidates.get(1 - which)
    fixed = operation.operands(record.inputs)[1 - which]
    now = None
    if other is not None and not own.by_split:
        now = other.chosen
        fixed = other.quantizer.fake_quantize(fixed)
    if which in seen and _same(seen[which], now):
        return False
    seen[which] = now
    score = _make_score(operation, record, metric, own, which, fixed)
    # The whole grid again in later rounds: the first round saw the other operand at its full range, and what
    # was best then may be far from what is best now.
    return own.choose(best_index(score, own.count, own.groups, mode, fixed.device))


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _make_score(
    operation: QuantOperation,
    record: Record,
    metric: Metric,
    own: Candidates,
    which: int,
    fixed: Tensor,
) -> Score:
    """Second moments where they serve and cost less than the outputs they stand for."""
    searched = Operand(operation, record, own.apply, own.quantizer, which, fixed, own.groups)
    if isinstance(metric, CosineMetric) and GramCosine.pays(searched):
        return GramCosine(searched)
    return DirectScore(metric, searched)


SQUARED_ERROR = SquaredErrorMetric()

MAP_GRID = Grid(alpha=1 / 128, beta=129 / 128, steps=128)
"""1/128 to the whole of the extreme values: most of an attention map is far below its largest entry."""


@torch.no_grad()
def search_maps(operations: Iterable[QuantOperation], run: Callable[[], Any]) -> None:
    """Set the scales of attention maps by the squared error of attention x value, while ``run`` runs.

    Only where the map has a static uniform quantizer: its values lie so far apart that a percentile of them,
    or their own squared error, says little of what the product needs; the logarithmic form has no such
    trouble. Searching the values and the product of queries and keys too gave no more (ViT-Tiny, W4A4).

    Args:
        operations: among which the products are.
        run: sends images through them; products that come later see what was chosen for earlier ones.
    """
    with ExitStack() as stack:
        for operation in operations:
            if isinstance(operation, QuantMatMul) and has_uniform_map(operation):
                stack.callback(operation.register_forward_pre_hook(_search_map).remove)
        run()


def has_uniform_map(product: QuantMatMul) -> bool:
    """Whether a product's first operand is an attention map with a static uniform quantizer."""
    spec = product.first_quantizer.spec
    uniform = spec.scheme == "uniform" and not spec.is_float and not spec.dynamic
    return product.role == "context" and uniform


def _search_map(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Choose once, with the values quantized as they are calibrated, if they are."""
    assert isinstance(product, QuantMatMul)
    record = Record(inputs, product.compute(*inputs), None)
    values = product.second_quantizer(inputs[1])
    own = Candidates(product.first_quantizer, inputs[0], MAP_GRID)

    def score(index: Tensor) -> Tensor:
        own.apply(index)
        estimate = product.compute(own.quantizer.fake_quantize(inputs[0]), values)
        return likeness(SQUARED_ERROR, record, estimate, own.groups, product.output_axis)

    own.choose(best_index(score, own.count, own.groups, "coarse-to-fine", values.device))
