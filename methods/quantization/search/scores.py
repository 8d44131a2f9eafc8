"""Scores of candidates: how like the true output of an operation the one with a candidate is.

A score is made of sums over rows (tokens of a linear layer, images of a convolution or an attention
product), so a candidate is scored chunk by chunk in the processor's cache, on the rows that count alone
where few do (`heaviest`), or from second moments without any output at all (`GramCosine`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantLinear,
    QuantMatMul,
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer


def bottom_eliminated(error: Tensor, percent: float) -> Tensor:
    """Set the smallest errors of each image to zero: those below the image's percentile of ``|error|``.

    The unavoidable small errors say nothing about a scale (APQ-ViT, bottom elimination). Each image has its
    own threshold, so the result does not depend on what else is in the batch.

    Args:
        error: [images, ...].
        percent: in [0, 100); 0 eliminates nothing.
    """
    sizes = error.abs().flatten(1)
    count = int(sizes.shape[1] * percent / 100)
    if count == 0:
        return error
    threshold = _order_statistic(sizes, count)
    kept = torch.ge(sizes, threshold, out=torch.empty_like(sizes))  # 1.0 or 0.0, no slow booleans
    return kept.mul_(error.flatten(1)).view_as(error)


def _order_statistic(x: Tensor, index: int) -> Tensor:
    """The element of each row that has ``index`` before it when sorted ([n, 1])."""
    if x.device.type == "cpu":
        # numpy's selection takes an eighth of the time of torch's on a CPU
        ordered = np.partition(x.numpy(), index, axis=1)
        return torch.from_numpy(ordered[:, index : index + 1].copy())
    return x.kthvalue(index + 1, dim=1, keepdim=True).values


@dataclass(frozen=True)
class EliminatedFisherMetric:
    """`FisherMetric` after bottom elimination; for a score on each operation's own output."""

    percent: float
    weighted: ClassVar[bool] = True
    by_token: ClassVar[bool] = False

    def sums(self, recording: Recording, estimate: Tensor, groups: int, axis: int) -> Tensor:
        """Return the weighted squared error per group, [1, groups]."""
        assert recording.squared_gradient is not None
        error = bottom_eliminated(estimate.sub_(recording.output), self.percent)
        return sum_by_group(error.square_().mul_(recording.squared_gradient), groups, axis)[None]

    def score(self, sums: Tensor) -> Tensor:
        """Return minus the error."""
        return -sums[0]


CHUNK_BYTES = 2**20
"""Bytes of one chunk's output: what is computed from it stays in a core's cache."""

HEAVY, LEAST = 0.99, 0.25
"""Share of the squared gradient, and of the rows, that a search looks at at least (docs/performance.md)."""

SUMMANDS = 1024
"""Products that a matrix product adds up in float32 at most where exactness matters."""

Score = Callable[[Tensor], Tensor]
"""Maps the candidate index of each group to its score, both [groups]; the higher the better."""


class Metric(Protocol):
    """Likeness of an estimated output to the true one, per group; higher is better.

    Attributes:
        weighted: whether rows count by their squared gradient.
        by_token: whether each token of a linear layer counts for itself; else its whole image does.
    """

    weighted: ClassVar[bool]
    by_token: ClassVar[bool]

    def sums(self, recording: Recording, estimate: Tensor, groups: int, axis: int) -> Tensor:
        """Return sums over rows, [sums, groups], the groups being equal blocks of dimension ``axis``.

        Those of several chunks add up. ``estimate`` may be overwritten.
        """

    def score(self, sums: Tensor) -> Tensor:
        """Return the likeness, [groups], from [sums, groups]."""


def sum_by_group(x: Tensor, groups: int, axis: int) -> Tensor:
    """Sum ``x`` to [groups], the groups being equal blocks of dimension ``axis``."""
    if groups == 1:
        return x.sum().reshape(1)
    axis %= x.dim()
    others = [d for d in range(x.dim()) if d != axis]
    return x.sum(dim=others).view(groups, -1).sum(dim=1)


class SquaredErrorMetric:
    """Minus the squared error."""

    weighted: ClassVar[bool] = False
    by_token: ClassVar[bool] = True

    def sums(self, recording: Recording, estimate: Tensor, groups: int, axis: int) -> Tensor:
        return sum_by_group(estimate.sub_(recording.output).square_(), groups, axis)[None]

    def score(self, sums: Tensor) -> Tensor:
        return -sums[0]


class FisherMetric(SquaredErrorMetric):
    """Minus the squared error weighted by the squared gradient (PTQ4ViT, equation 7)."""

    weighted: ClassVar[bool] = True

    def sums(self, recording: Recording, estimate: Tensor, groups: int, axis: int) -> Tensor:
        assert recording.squared_gradient is not None
        error = estimate.sub_(recording.output).square_().mul_(recording.squared_gradient)
        return sum_by_group(error, groups, axis)[None]


class CosineMetric:
    """The cosine of the angle between true and estimated output (EasyQuant, equation 4)."""

    weighted: ClassVar[bool] = False
    by_token: ClassVar[bool] = True

    def sums(self, recording: Recording, estimate: Tensor, groups: int, axis: int) -> Tensor:
        inner = sum_by_group(recording.output * estimate, groups, axis)
        true_norm = sum_by_group(recording.output.square(), groups, axis)
        return torch.stack([inner, sum_by_group(estimate.square_(), groups, axis), true_norm])

    def score(self, sums: Tensor) -> Tensor:
        inner, norm, true_norm = sums
        cosine: Tensor = inner / (true_norm * norm).clamp_min(1e-30).sqrt()
        return cosine


def likeness(
    metric: Metric, recording: Recording, estimate: Tensor, groups: int, axis: int
) -> Tensor:
    """Return the score of one whole estimate, [groups]; arguments as of `Metric.sums`."""
    return metric.score(metric.sums(recording, estimate, groups, axis))


def by_row(operation: QuantOperation, recording: Recording) -> Recording:
    """Return the recording with one row per token, where a token has its own output (linear layers)."""
    if not isinstance(operation, QuantLinear):
        return recording
    gradient = recording.squared_gradient
    return Recording(
        tuple(x.flatten(0, -2) for x in recording.inputs),
        recording.output.flatten(0, -2),
        None if gradient is None else gradient.flatten(0, -2),
    )


def heaviest(squared_gradient: Tensor, share: float = HEAVY, least: float = LEAST) -> Tensor:
    """Return the fewest rows that hold ``share`` of the squared gradient (indices in order, int64).

    A trained model's gradients lie on few rows, in the last block of a ViT on the class tokens alone, and
    what the other rows say of a candidate hardly counts. But at least the part ``least`` of the rows is
    kept: a scale is fitted to what it is searched on, and on a handful of rows it fits by luck.
    """
    mass, order = squared_gradient.flatten(1).sum(1, dtype=torch.float64).sort(descending=True)
    reached = mass.cumsum(0)
    count = int((reached < share * reached[-1]).sum()) + 1
    return order[: max(count, math.ceil(least * len(order)))].sort().values


def rows_of(recording: Recording, index: Tensor) -> Recording:
    """Return the recording of some rows."""
    gradient = recording.squared_gradient
    return Recording(
        tuple(x[index] for x in recording.inputs),
        recording.output[index],
        None if gradient is None else gradient[index],
    )


@dataclass(frozen=True)
class Operand:
    """One operand of an operation whose quantizer is searched.

    Attributes:
        operation: what it belongs to.
        recording: what the operation saw and gave in full precision.
        apply: sets the quantizer to the candidates of an index.
        quantizer: the searched one.
        which: 0 or 1, first or second operand.
        fixed: the other operand as it is now.
        groups: of the quantizer.
    """

    operation: QuantOperation
    recording: Recording
    apply: Callable[[Tensor], None]
    quantizer: Quantizer
    which: int
    fixed: Tensor
    groups: int


class DirectScore:
    """Scores by computing the operation's output, chunk by chunk."""

    def __init__(self, metric: Metric, searched: Operand) -> None:
        operation, recording, which = searched.operation, searched.recording, searched.which
        self.metric, self.operation, self.which = metric, operation, which
        self.apply, self.quantizer = searched.apply, searched.quantizer
        self.groups, fixed = searched.groups, searched.fixed
        chunks = _chunks(recording)
        own = operation.operands(recording.inputs)[which]
        self.whole = own if self._is_weight(which) else None
        sizes = [len(chunk.output) for chunk in chunks]
        self.chunks = list(
            zip(
                chunks,
                [None] * len(sizes) if self.whole is not None else torch.split(own, sizes),
                [fixed] * len(sizes) if self._is_weight(1 - which) else torch.split(fixed, sizes),
                strict=True,
            )
        )

    def _is_weight(self, operand: int) -> bool:
        return operand == 1 and isinstance(self.operation, WeightedOperation)

    def __call__(self, index: Tensor) -> Tensor:
        """Return the score of candidate ``index`` per group."""
        self.apply(index)
        weight = None if self.whole is None else self.quantizer.fake_quantize(self.whole)
        sums = []
        for recording, own, fixed in self.chunks:
            moving = weight if own is None else self.quantizer.fake_quantize(own)
            assert moving is not None
            pair = (moving, fixed) if self.which == 0 else (fixed, moving)
            estimate = self.operation.compute(*pair)
            axis = self.operation.output_axis
            sums.append(self.metric.sums(recording, estimate, self.groups, axis))
        return self.metric.score(torch.stack(sums).sum(dim=0))


def _chunks(recording: Recording) -> Sequence[Recording]:
    per_row = recording.output[0].numel() * recording.output.element_size()
    rows = max(1, CHUNK_BYTES // per_row)
    if recording.output.device.type != "cpu" or rows >= len(recording.output):
        return [recording]
    gradient = recording.squared_gradient
    outputs = torch.split(recording.output, rows)
    gradients = [None] * len(outputs) if gradient is None else torch.split(gradient, rows)
    inputs = zip(*(torch.split(x, rows) for x in recording.inputs), strict=True)
    return [Recording(*parts) for parts in zip(inputs, outputs, gradients, strict=True)]


class GramCosine:
    """`CosineMetric` of one operand from second moments of the other: no output is computed.

    With a a row of the searched operand, F the fixed one [R, K], y the true outputs of that row, b what the
    bias adds to them: ``<y, F a + b> = a . F'y + b . y``, ``|F a + b|^2 = a' F'F a + 2 a . F'b + |b|^2``. A
    candidate costs K^2 a row in place of R K, so it pays where K < R (`GramCosine.pays`). Sums over rows are
    float64, which brings it nearer to the true cosine than float32 outputs come; for weights, which may have
    a scale per row, all of it.
    """

    def __init__(self, searched: Operand) -> None:
        operation, recording, which = searched.operation, searched.recording, searched.which
        self.apply, self.quantizer = searched.apply, searched.quantizer
        self.groups, fixed = searched.groups, searched.fixed
        self.moving = operation.operands(recording.inputs)[which]
        self.is_weight = which == 1 and isinstance(operation, QuantLinear)
        true = recording.output if which == 0 else recording.output.transpose(-2, -1)
        self.gram = _product(fixed.transpose(-2, -1), fixed)
        self.cross = _product(true, fixed)
        bias = _bias(operation, which, true)
        self.linear = _product(bias.expand_as(true), fixed).mul_(2)
        self.inner_constant = (bias * true).sum(-1, dtype=torch.float64)
        self.norm_constant = bias.expand_as(true).square().sum(-1, dtype=torch.float64)
        self.true_norm = self._by_group(true.square().sum(-1, dtype=torch.float64))
        if not self.is_weight:
            self.gram, self.cross = self.gram.float(), self.cross.float()
            self.linear = self.linear.float()

    @staticmethod
    def pays(searched: Operand) -> bool:
        """Whether the search has the form, and second moments are smaller than outputs."""
        operation, fixed = searched.operation, searched.fixed
        if fixed.shape[-2] <= fixed.shape[-1]:
            return False
        if isinstance(operation, QuantLinear):
            return searched.which == 1 or searched.groups == 1
        return isinstance(operation, QuantMatMul) and operation.transposed

    def __call__(self, index: Tensor) -> Tensor:
        """Return the cosine of candidate ``index`` per group."""
        self.apply(index)
        moving = self.quantizer.fake_quantize(self.moving).to(self.gram.dtype)
        inner = (moving * self.cross).sum(-1).double() + self.inner_constant
        quadratic = (moving @ self.gram).add_(self.linear).mul_(moving)
        norm = quadratic.sum(-1).double() + self.norm_constant
        sums = [self._by_group(inner), self._by_group(norm), self.true_norm]
        return CosineMetric().score(torch.stack(sums))

    def _by_group(self, rows: Tensor) -> Tensor:
        """Sum [C] of a weight, [n] of an input or [B, heads, N] of an attention operand to [groups]."""
        if self.is_weight:
            return rows.view(self.groups, -1).sum(1)
        return sum_by_group(rows, self.groups, 1)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """``first @ second`` in float64 where the sum is long (each part of it in float32)."""
    if first.dim() > 2 or first.shape[-1] <= SUMMANDS:
        return (first @ second).double()
    parts = zip(torch.split(first, SUMMANDS, dim=1), torch.split(second, SUMMANDS), strict=True)
    return torch.stack([a @ b for a, b in parts]).sum(0, dtype=torch.float64)


def _bias(operation: QuantOperation, which: int, true: Tensor) -> Tensor:
    """What the bias adds to ``true`` [rows of the searched operand, rows of the fixed one]; broadcasts."""
    bias: Tensor | None = getattr(operation, "bias", None)
    if bias is None:
        return true.new_zeros(())
    return bias.detach() if which == 0 else bias.detach()[:, None]
