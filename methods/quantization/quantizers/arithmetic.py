"""Arithmetic of quantization: grids from ranges, and fake quantization in a few vectorised passes.

On a CPU torch's own operators (`torch.fake_quantize_per_tensor_affine`, `torch.where`,
`Tensor.masked_fill_`) go through a tensor one element at a time and take about ten times what these
passes take. The values are the same to the last bit (tests). On a GPU the fused operators are one kernel,
and are used.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TINY = 1e-8
"""Smallest scale: below it, its reciprocal would overflow."""


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes as if nothing had happened (straight-through)."""
    return x + (x.round() - x).detach()


def scale_and_zero_point(
    low: Tensor,
    high: Tensor,
    bits: int,
    symmetric: bool,
    rounding: Callable[[Tensor], Tensor] = torch.round,
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point (whole, in the type of ``low``) of the grid that covers a range.

    Affine: ``s = (high - low) / (2^b - 1)``, ``z = round(-low / s)``. Symmetric:
    ``s = max(|low|, |high|) / (2^(b-1) - 0.5)``, so that the extreme value falls on the border of the last
    code's cell, and ``z = 0``.

    Args:
        low, high: float, of one shape; the results have it too.
        bits: b.
        symmetric: which of the two.
        rounding: of the zero point; `round_through` lets gradients pass.
    """
    if symmetric:
        bound = torch.maximum(low.abs(), high.abs())
        scale = (bound / (2 ** (bits - 1) - 0.5)).clamp_min(TINY)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (2**bits - 1)).clamp_min(TINY)
    return scale, rounding(-low / scale)


def widened(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return a range, that of a constant tensor widened to zero: 1 / scale would overflow without a width."""
    flat = high - low < TINY
    return torch.where(flat, low.clamp_max(0), low), torch.where(flat, high.clamp_min(0), high)


def spread(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Return one value per group in a shape that meets its entries of ``x``.

    Args:
        values: [groups]; each belongs to an equal block of entries of the axis, one after the other.
        x: of any shape; the size of the axis is a multiple of the number of groups.
        axis: the dimension of ``x`` that is grouped; None: the first. A single value meets everything.
    """
    if values.numel() == 1:
        return values
    axis = axis or 0
    block = x.shape[axis] // values.numel()
    shape = [1] * x.dim()
    shape[axis] = -1
    return (values if block == 1 else values.repeat_interleave(block)).view(shape)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, code_range: tuple[int, int], divide: bool = False
) -> Tensor:
    """Return ``s (clip(round(x / s) + z, low, high) - z)``, rounded half to even.

    Args:
        x: float, any shape.
        scale, zero_point: of a shape that meets ``x``.
        code_range: low and high.
        divide: take the quotient; else ``x`` times the reciprocal of the scale, as torch's operators do.

    The gradient passes to ``x`` where the code is within its range, and not to the parameters.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _fake_quantize(x, scale, zero_point, code_range, divide)
    return _clip(_codes(x, scale, divide), zero_point, code_range).mul_(scale)


def _codes(x: Tensor, scale: Tensor, divide: bool) -> Tensor:
    return (x / scale if divide else x * scale.reciprocal()).round_()


def _clip(codes: Tensor, zero_point: Tensor, code_range: tuple[int, int]) -> Tensor:
    """Clip codes without zero point, in place; bounds that are numbers are the fastest.

    A GPU's numbers stay there: reading one would wait for it. Nor does a traced graph hold numbers that were
    read from tensors.
    """
    low, high = code_range
    on_cpu = zero_point.device.type == "cpu" and not torch.compiler.is_compiling()
    if zero_point.numel() == 1 and on_cpu:
        zero = float(zero_point)
        return codes.clamp_(low - zero, high - zero)
    zero_point = zero_point.to(codes.dtype)
    return codes.add_(zero_point).clamp_(low, high).sub_(zero_point)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        code_range: tuple[int, int],
        divide: bool,
    ) -> Tensor:
        codes = _codes(x, scale, divide)
        shifted = codes + zero_point  # a zero point may be no whole number: compare before it goes
        inside = shifted.clamp(*code_range).eq_(shifted)  # 1.0 or 0.0, no slow booleans
        ctx.save_for_backward(inside)
        return _clip(codes, zero_point, code_range).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


_fake_quantize: Callable[..., Tensor] = _FakeQuantize.apply


def trainable_fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, code_range: tuple[int, int]
) -> Tensor:
    """Return the same values by the quotient, with gradients to ``x``, ``scale`` and ``zero_point``.

    The rounding passes gradients, the clipping passes them inside the range alone (LSQ, Esser et al.,
    ICLR 2020, equation 3; LSQ+ for the zero point). One node of the graph in place of nine.

    Args:
        x: float, any shape.
        scale, zero_point: float, of as many dimensions as ``x`` or of one element.
        code_range: low and high.
    """
    return _trainable_fake_quantize(x, scale, zero_point, code_range)


class _TrainableFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, code_range: tuple[int, int]
    ) -> Tensor:
        quotient = x / scale
        shifted = quotient.round().add_(zero_point)
        codes = shifted.clamp(*code_range)
        inside = shifted.eq_(codes)
        levels = codes.sub_(zero_point)
        ctx.save_for_backward(quotient, levels, inside, scale, zero_point)
        return levels * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        quotient, levels, inside, scale, zero_point = ctx.saved_tensors
        (gradient,) = gradients
        of_x, of_scale, of_zero = ctx.needs_input_grad[:3]
        at_levels = gradient * scale
        at_codes = at_levels * inside
        grad_x = at_codes / scale if of_x else None
        grad_scale = grad_zero = None
        if of_zero:
            shape = zero_point.shape
            grad_zero = at_codes.sum_to_size(shape) - at_levels.sum_to_size(shape)
        if of_scale:
            # Two passes into memory that is at hand and no longer needed.
            rising = torch.mul(gradient, levels, out=at_levels).sum_to_size(scale.shape)
            falling = torch.div(quotient, scale, out=at_levels).mul_(at_codes)
            grad_scale = rising - falling.sum_to_size(scale.shape)
        return grad_x, grad_scale, grad_zero, None


_trainable_fake_quantize: Callable[..., Tensor] = _TrainableFakeQuantize.apply


def extremes(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return lowest and highest value over ``dims``, which stay as size 1.

    The gradient of each is shared equally among the values that attain it, as that of `Tensor.amin` is,
    which takes a comparison to booleans and back for it, ten times these passes.
    """
    return _extremes(x, dims)


class _Extremes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        ctx.save_for_backward(x, low, high)
        ctx.dims = dims
        return low, high

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, *ends = ctx.saved_tensors
        shares = []
        for end, gradient in zip(ends, gradients, strict=True):
            attains = torch.eq(x, end, out=torch.empty_like(x))  # 1.0 or 0.0, no slow booleans
            shares.append(attains.mul_(gradient / attains.sum(ctx.dims, keepdim=True)))
        return shares[0].add_(shares[1]), None


_extremes: Callable[..., tuple[Tensor, Tensor]] = _Extremes.apply


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` to the bit; the gradient passes to ``x`` as if they were it."""
    return _straight_through(x, values)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


_straight_through: Callable[..., Tensor] = _StraightThrough.apply


def choose(chosen: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``first`` where ``chosen`` (float) is 1 and ``second`` where it is 0; all of one shape.

    Differentiable in ``first`` and ``second``.
    """
    return torch.lerp(second, first, chosen)
