"""Quantizers whose values are a table: codes are places in it, values its levels times a scale per row.

Notation: ``Q(w) = s_r l_k``, k the place of the level nearest to ``w / s_r``; half-way between two levels
the even place is taken, as rounding half to even does on a uniform grid.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    TINY,
    spread,
    straight_through,
)
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer


def cell_bounds(table: Tensor) -> Tensor:
    """Return the largest number that still belongs to each level but the last.

    Args:
        table: ascending levels, float, [T, n].

    Returns:
        [T, n - 1], of the type of ``table``: midpoints, those above an odd place one float lower, so that the
        tie goes to the even one.
    """
    bounds = (table[:, 1:] + table[:, :-1]) / 2
    odd = bounds[:, 1::2]
    bounds[:, 1::2] = torch.nextafter(odd, torch.full_like(odd, -torch.inf))
    return bounds


def nearest_places(x: Tensor, bounds: Tensor) -> Tensor:
    """Return the places of the nearest levels (int64, shape of ``x``).

    Args:
        x: float; any shape where there is one table, else [T, ...], a row for each table.
        bounds: from `cell_bounds`, [T, n - 1].
    """
    if bounds.shape[0] == 1:
        return torch.searchsorted(bounds[0], x.contiguous())
    rows = x.reshape(len(bounds), -1).contiguous()
    return torch.searchsorted(bounds.contiguous(), rows).view(x.shape)


def look_up(places: Tensor, table: Tensor) -> Tensor:
    """Return the levels at ``places`` (int64); shapes as in `nearest_places`, ``table`` [T, n]."""
    if table.shape[0] == 1:
        return table[0].index_select(0, places.reshape(-1)).view(places.shape)
    return table.gather(1, places.reshape(len(table), -1)).view(places.shape)


class LevelQuantizer(CodedQuantizer):
    """Base: 2^b levels in ascending order, of all rows or of each, times a ``scale`` (float32, [groups]).

    The scale need not be the largest value: levels are numbers of the hardware's own, such as sums of powers
    of two. Static only. Gradients pass straight through.

    Raises:
        MethodError: the spec asks for a dynamic range.
    """

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        if spec.dynamic and not spec.is_float:
            raise MethodError(
                f"{site}: the form {spec.scheme!r} has no dynamic range; use 'uniform' there"
            )
        super().__init__(spec, site, axis)

    @abstractmethod
    def table(self) -> Tensor:
        """Return the levels, ascending, float32: [1, 2^b], or [groups, 2^b] where each row has its own."""

    @property
    def code_range(self) -> tuple[int, int]:
        """The places in the table."""
        return 0, 2**self.spec.bits - 1

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def quantize(self, x: Tensor) -> Tensor:
        """Return the places of the levels nearest to ``x / s`` (int32, shape of ``x``)."""
        return self._places(x / spread(self.scale, x, self.axis)).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return ``s l`` of the places ``codes``, float32."""
        return self.levels_at(codes.long()) * spread(self.scale, codes, self.axis)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest values; gradients pass straight through."""
        # By the reciprocal, as the uniform form does it.
        places = self._places(x.detach() * spread(self.scale.reciprocal(), x, self.axis))
        values = self.levels_at(places).to(x.dtype) * spread(self.scale, x, self.axis)
        return straight_through(x, values) if x.requires_grad else values

    def _places(self, ratio: Tensor) -> Tensor:
        bounds = cell_bounds(self.table().to(ratio.dtype))
        return self._by_table(ratio, len(bounds), lambda x: nearest_places(x, bounds))

    def place_below(self, ratio: Tensor) -> Tensor:
        """Return the place of the highest level that is not above ``ratio`` (int64, its shape), or -1.

        ``ratio``: float32, values over their scales, of a shape that the quantizer takes.
        """
        table = self.table()
        above = torch.nextafter(table, torch.full_like(table, -torch.inf))
        return self._by_table(ratio, len(table), lambda x: nearest_places(x, above)) - 1

    def levels_at(self, places: Tensor) -> Tensor:
        """Return the levels at ``places`` (int64, of a shape that the quantizer takes), without scale."""
        table = self.table()
        return self._by_table(places, len(table), lambda x: look_up(x, table))

    def _by_table(self, x: Tensor, tables: int, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``function`` with the axis in front, where rows have tables of their own."""
        if tables == 1:
            return function(x)
        axis = self.axis or 0
        moved = x.movedim(axis, 0)
        return function(moved.reshape(tables, -1)).view(moved.shape).movedim(0, axis)

    def problem(self) -> str | None:
        """Also of the shape of the scales, and of levels that do not ascend."""
        found = super().problem()
        if found or self.spec.is_float or not self.scale.numel():
            return found
        if self.scale.dim() != 1:
            return f"scales of shape {tuple(self.scale.shape)}, not one per group"
        return self.table_problem() or self._order_problem()

    @abstractmethod
    def table_problem(self) -> str | None:
        """Return in words what is wrong with what the table is made of, or None."""

    def _order_problem(self) -> str | None:
        table = self.table()
        if bool((cell_bounds(table).diff(dim=1) < 0).any() | (table.diff(dim=1) < 0).any()):
            return "levels that do not ascend"
        if not bool(torch.isfinite(table.abs().amax(dim=1) * self.scale).all()):
            return "levels that are not finite"
        return None


class TableQuantizer(LevelQuantizer):
    """Base of the forms with one table for all rows: buffer ``levels`` (float32, [2^b]) of `candidates`.

    Attributes:
        mirrored: whether candidates are magnitudes and the levels those with both signs.
    """

    mirrored: ClassVar[bool]
    levels: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("levels", torch.empty(0))

    @classmethod
    @abstractmethod
    def candidates(cls, bits: int) -> Tensor:
        """Return the numbers that levels are chosen from, ascending, float32, [N].

        No fewer than are chosen: 2^(b-1) where `mirrored`, else 2^b.
        """

    @property
    def choices(self) -> int:
        """How many candidates are chosen."""
        return int(2 ** (self.spec.bits - self.mirrored))

    def table(self) -> Tensor:
        return self.levels[None]

    def set_levels(self, chosen: Tensor, scale: Tensor) -> None:
        """Set the levels and the scales.

        Args:
            chosen: ascending, [`choices`], of `candidates`.
            scale: > 0, [groups].

        Raises:
            MethodError: a value is not finite.
        """
        self._require_finite(chosen, scale)
        chosen = chosen.detach().float()
        self.levels = torch.cat([-chosen.flip(0), chosen]) if self.mirrored else chosen.clone()
        self.scale = scale.detach().float().reshape(-1).clamp_min(TINY).contiguous()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Let the level of largest magnitude stand for that of [low, high] (shape [groups]).

        The levels are candidates at even distances in their order, unless there are some. A search does
        better.
        """
        self._require_finite(low, high)
        chosen = self.levels[-self.choices :]
        if not chosen.numel():
            known = self.candidates(self.spec.bits).to(high.device)
            chosen = known[torch.linspace(0, len(known) - 1, self.choices).round().long()]
        reach = torch.maximum(low.abs(), high.abs())
        self.set_levels(chosen, reach / chosen.abs().max())

    def table_problem(self) -> str | None:
        """2^b numbers of `candidates`, with both signs where `mirrored`."""
        levels = self.levels
        if levels.shape != (2**self.spec.bits,) or levels.dtype != torch.float32:
            return f"levels {tuple(levels.shape)} of type {levels.dtype}"
        known = self.candidates(self.spec.bits).to(levels.device)
        if self.mirrored and not torch.equal(levels, -levels.flip(0)):
            return "levels without their negatives"
        if not bool(torch.isin(levels[-self.choices :], known).all()):
            return "levels that its form does not have"
        return None
