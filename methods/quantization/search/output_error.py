"""Progressive search of both operands of an operation by the squared error of its output.

The output is bilinear, so its error is a quadratic form in the error of one operand while the other is
fixed: no output is computed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantConv2d,
    QuantMatMul,
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.search.attention_maps import IMAGE_ENTRIES
from vit_ptq_bench.methods.quantization.search.progressive import (
    Pairs,
    Progression,
    progressive,
    quantize_of,
    require_pair,
    search_own,
    set_pair,
    start_of,
)

TOKENS, IMAGES, ROWS = 256, 16, 12
"""Rows of a layer's input, and images of an attention product, that an activation's grid is chosen on; of
queries, keys and maps about so many rows an image, taken at one stride: rows of many images rather than many
rows of few, for how long keys are differs from image to image."""

WEIGHT_TOKENS = 8192
"""Rows of a layer's input that second moments for its weight are taken of."""

EXACT = 16
"""Candidates of which the whole error is computed, the best by `QuadraticError.rough`."""


class QuadraticError:
    """Error of ``(m + e) g' - m f'`` as a function of e, for every row of m; without what e leaves alone.

    With G = g'g and L = m (g - f)'g: ``e G e' + 2 e L'``. The first term's diagonal costs almost nothing.

    Args:
        moving: m, [..., R, C].
        true, fixed: f and g, the other operand in full precision and as it is now, [..., O, C].
    """

    def __init__(self, moving: Tensor, true: Tensor, fixed: Tensor) -> None:
        rows, columns = fixed.shape[-2:]
        off = fixed - true
        if rows > columns:
            self.linear = moving @ (off.transpose(-2, -1) @ fixed)
            self.gram: Tensor | None = fixed.transpose(-2, -1) @ fixed
            self.diagonal = self.gram.diagonal(dim1=-2, dim2=-1)
        else:
            self.linear = (moving @ off.transpose(-2, -1)) @ fixed
            self.gram = None
            self.diagonal = fixed.square().sum(dim=-2)
        self.linear = self.linear.mul_(2)
        self.diagonal = self.diagonal.unsqueeze(-2)
        self.fixed = fixed

    def rough(self, e: Tensor) -> Tensor:
        """Return the error of each row [..., R] as if the errors of two columns were uncorrelated."""
        return (e * self.diagonal).add_(self.linear).mul_(e).sum(dim=-1)

    def whole(self, e: Tensor) -> Tensor:
        """Return the error of each row, [..., R]."""
        if self.gram is not None:
            return (e @ self.gram).add_(self.linear).mul_(e).sum(dim=-1)
        outputs = e @ self.fixed.transpose(-2, -1)
        return outputs.square_().sum(dim=-1) + (e * self.linear).sum(dim=-1)


@dataclass(frozen=True)
class Operand:
    """One operand of an operation, and the error of the output while the other one is fixed.

    Attributes:
        quantizer: of the operand.
        x: the operand, or a sample of it, as the quantizer sees it.
        form: the error as a function of that of ``rows(x)``.
        rows: brings a tensor like ``x`` into the form's rows.
        is_weight: whether it is a weight.
        is_map: whether it is an attention map: the errors of its columns are nothing but correlated.
    """

    quantizer: Quantizer
    x: Tensor
    form: QuadraticError
    rows: Callable[[Tensor], Tensor]
    is_weight: bool = False
    is_map: bool = False

    def errors(self, pairs: Pairs) -> Tensor:
        """Return the errors of candidates, [K, G]; infinite beyond the `EXACT` that are best roughly."""
        if self.is_map or len(pairs[0]) <= EXACT:
            return self._each(pairs, self.form.whole)
        rough = self._each(pairs, self.form.rough)
        index = rough.topk(EXACT, dim=0, largest=False).indices
        best = pairs[0].gather(0, index), pairs[1].gather(0, index)
        errors = torch.full_like(rough, torch.inf)
        return errors.scatter_(0, index, self._each(best, self.form.whole))

    def _each(self, pairs: Pairs, error: Callable[[Tensor], Tensor]) -> Tensor:
        quantize = quantize_of(self.quantizer)
        found = []
        for pair in zip(*pairs, strict=True):
            e = quantize(self.x, pair).sub_(self.x)
            found.append(self._by_group(error(self.rows(e)), len(pair[0])))
        return torch.stack(found)

    def _by_group(self, rows: Tensor, groups: int) -> Tensor:
        """Sum [R] of a layer or [B, heads, R] of an attention product to [groups]."""
        if groups == 1:
            return rows.sum().reshape(1)
        return rows.view(groups, -1).sum(1) if rows.dim() == 1 else rows.sum((0, 2))


@torch.no_grad()
def search_progressively(
    operation: QuantOperation, recording: Recording, progression: Progression, rounds: int
) -> None:
    """Set the quantizers of both operands: by their own squared error first, then by the output's, in turns.

    Weights come before inputs, the first operand of an attention product before the second. A map is never
    judged by its own error. Rounds end when nothing changes. By their own error alone: inputs with a scale
    per channel, and convolutions whose windows overlap, of which the matrix form takes too much memory.

    Args:
        operation: a linear layer, convolution or attention product.
        recording: its full-precision inputs.
        progression: numbers of each search.
        rounds: alternations.

    Raises:
        MethodError: a form that has no pair of numbers to search; the site is named.
    """
    tensors = operation.operands(recording.inputs)
    quantizers = list(operation.quantizers().values())
    order = [
        i
        for i in ((1, 0) if isinstance(operation, WeightedOperation) else (0, 1))
        if not quantizers[i].spec.is_float and not quantizers[i].spec.dynamic
    ]
    searched = [i for i in order if _has_form(operation, i)] if rounds else []
    for i in order:
        require_pair(quantizers[i])
    for i in reversed(order):
        if i in searched[:-1]:  # judged by the output first of all
            continue
        if _is_map(operation, i):
            _search(operand_of(operation, tensors, i), progression)
        else:
            is_weight = isinstance(operation, WeightedOperation) and i == 1
            search_own(quantizers[i], tensors[i], progression, is_weight)
    for _ in range(rounds):
        before = [quantizers[i].state_dict() for i in searched]
        for i in searched:
            _search(operand_of(operation, tensors, i), progression)
        now = [quantizers[i].state_dict() for i in searched]
        if all(map(_same, before, now)):
            return


def _is_map(operation: QuantOperation, which: int) -> bool:
    return operation.role == "context" and which == 0


def _has_form(operation: QuantOperation, which: int) -> bool:
    """Whether the error of the output is a sum over the groups of an operand's quantizer, and fits."""
    if isinstance(operation, QuantConv2d) and operation.role != "patch_embed":
        return False
    if which == 1 or not isinstance(operation, WeightedOperation):
        return True
    return operation.input_quantizer.spec.granularity != "channel"


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def _search(own: Operand, progression: Progression) -> None:
    groups = grouped(own.x, own.quantizer)
    start = start_of(own.quantizer, groups, own.errors, progression, own.is_weight)
    set_pair(own.quantizer, *progressive(start, own.errors, progression))


def operand_of(operation: QuantOperation, tensors: tuple[Tensor, Tensor], which: int) -> Operand:
    """Return one operand, the other one quantized as it is calibrated now.

    Args:
        operation: with a matrix form.
        tensors: both operands in full precision.
        which: 0 or 1.
    """
    if isinstance(operation, WeightedOperation):
        return _weight(operation, tensors[0]) if which else _input(operation, tensors[0])
    assert isinstance(operation, QuantMatMul)
    return _factor(operation, tensors, which)


def _weight(operation: WeightedOperation, x: Tensor) -> Operand:
    true = every(operation.columns(x), WEIGHT_TOKENS)
    fixed = every(operation.columns(_now(operation.input_quantizer, x)), WEIGHT_TOKENS)
    weight = operation.weight.detach()
    form = QuadraticError(weight.flatten(1), true, fixed)
    return Operand(operation.weight_quantizer, weight, form, lambda w: w.flatten(1), is_weight=True)


def _input(operation: WeightedOperation, x: Tensor) -> Operand:
    rows = every(operation.columns(x), TOKENS)
    weight = operation.weight.detach()
    now = _now(operation.weight_quantizer, weight).flatten(1)
    form = QuadraticError(rows, weight.flatten(1), now)
    return Operand(operation.input_quantizer, rows, form, lambda x: x)


def _factor(product: QuantMatMul, tensors: tuple[Tensor, Tensor], which: int) -> Operand:
    """Operand of query x key' or of attention x value: of the latter, the values are turned."""
    entries = tensors[0].shape[1] * tensors[0].shape[2] * tensors[1].shape[2]
    few = [every(x, IMAGES * max(1, IMAGE_ENTRIES // entries)) for x in tensors]
    own, other = few[which], few[1 - which]
    if product.transposed or which == 0:
        own = own[..., :: max(1, own.shape[-2] // ROWS), :]  # rows of the output are independent
    quantizers = list(product.quantizers().values())
    now = _now(quantizers[1 - which], other)

    def turned(x: Tensor) -> Tensor:
        return x.transpose(-2, -1)

    def same(x: Tensor) -> Tensor:
        return x

    own_rows, other_rows = same, same
    if not product.transposed:
        own_rows, other_rows = (same, turned) if which == 0 else (turned, same)
    form = QuadraticError(own_rows(own), other_rows(other), other_rows(now))
    return Operand(quantizers[which], own, form, own_rows, is_map=_is_map(product, which))


def every(x: Tensor, most: int) -> Tensor:
    """Return at most ``most`` rows of ``x``, taken at one stride."""
    return x[:: math.ceil(len(x) / most)]


def _now(quantizer: Quantizer, x: Tensor) -> Tensor:
    floating = quantizer.spec.is_float or not quantizer.initialised
    return x if floating else quantizer.fake_quantize(x)
