"""Levels chosen from the 256 numbers of an 8-bit type: codes of few bits, arithmetic of eight."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.quantizers.arithmetic import spread, straight_through
from vit_ptq_bench.methods.quantization.quantizers.levels import (
    TableQuantizer,
    cell_bounds,
    nearest_places,
)
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

LOWEST, HIGHEST = -128, 127
"""Integers that the levels of `CodebookQuantizer` are chosen from."""

KEPT = 19
"""Bits of a float32's significand that do not tell a cell of `FloatCodebookQuantizer`: four are left, one
more than its candidates have, and so a cell has no more than one border between levels."""

BLOCK = 1 << 17
"""Numbers that go through all passes of a look-up together. They and what the passes leave stay in a CPU's
cache, and the memory that is written is the same for all blocks: half the time of whole tensors."""


class Codebook(TableQuantizer):
    """Base: one table for the tensor, 2^b numbers of an 8-bit type on both sides of zero.

    The quantizer of least squared error for its number of levels (Max, 1960; Lloyd, 1982), on levels that an
    8-bit product can multiply: a tensor is stored in codes of b bits, and a table of 2^b bytes makes them its
    operand. That they are numbers of such a type is ours.

    Attributes:
        shares: scales that a search tries, in units of the one that puts the largest value on the outermost
            number of the type.
    """

    mirrored: ClassVar[bool] = False
    shares: ClassVar[tuple[float, ...]]

    @property
    def operand_bits(self) -> int:
        """Eight, for that is what the levels are."""
        return 8

    @abstractmethod
    def _writer(self, room: int) -> Callable[[Tensor, Tensor], None]:
        """Return what writes the nearest values of up to ``room`` numbers, float32, into another tensor.

        To the bit what `fake_quantize` says without it. One scale only.
        """

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest values; gradients pass straight through."""
        in_blocks = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if in_blocks and x.dtype == torch.float32 and self.scale.numel() == 1:
            values = self._in_blocks(x.detach())
            return straight_through(x, values) if x.requires_grad else values
        # By the reciprocal, as the uniform form does it.
        places = self._places(x.detach() * spread(self.scale.reciprocal(), x, self.axis))
        levels, one = self.levels.to(x.dtype), self.scale.numel() == 1
        values = (levels * self.scale if one else levels).index_select(0, places.flatten())
        values = values.view(x.shape)
        if not one:
            values = values * spread(self.scale, x, self.axis)
        return straight_through(x, values) if x.requires_grad else values

    def _in_blocks(self, x: Tensor) -> Tensor:
        """The nearest values of a tensor, `BLOCK` by `BLOCK`."""
        flat = x.reshape(-1)
        values = torch.empty_like(flat)
        write = self._writer(min(BLOCK, len(flat)))
        for numbers, place in zip(
            torch.split(flat, BLOCK), torch.split(values, BLOCK), strict=True
        ):
            write(numbers, place)
        return values.view(x.shape)


@register_form("codebook")
class CodebookQuantizer(Codebook):
    """``Q(x) = s_r l_k``, l one of 2^b of the integers -128 to 127 that a tensor chooses."""

    shares = (1.0, 0.7, 0.5, 0.35)  # the smaller, the finer is the grid inside

    @classmethod
    def candidates(cls, bits: int) -> Tensor:
        return torch.arange(float(LOWEST), float(HIGHEST) + 1)

    def _places(self, ratio: Tensor) -> Tensor:
        # Borders between integers are multiples of 1/2: a look-up is cheaper than `nearest_places` (CPU).
        halves = 2 * ratio
        quarters = _to_quarters(halves, halves.ceil()).to(torch.int32).flatten()
        return self._places_of_quarters().index_select(0, quarters).view(ratio.shape)

    def _places_of_quarters(self) -> Tensor:
        """The place of the level nearest to each of `_to_quarters`, int32."""
        quarters = torch.arange(4 * LOWEST, 4 * -LOWEST + 1, device=self.levels.device)
        places = nearest_places(quarters.to(self.levels.dtype) / 4, cell_bounds(self.table()))
        return places.to(torch.int32)

    def _writer(self, room: int) -> Callable[[Tensor, Tensor], None]:
        table = (self.levels * self.scale)[self._places_of_quarters()]
        factor = 2 * self.scale.reciprocal()
        halves, above = torch.empty(2, room)
        quarters = torch.empty(room, dtype=torch.int32)

        def write(x: Tensor, values: Tensor) -> None:
            lower, upper, own = halves[: len(x)], above[: len(x)], quarters[: len(x)]
            torch.mul(x, factor, out=lower)
            torch.ceil(lower, out=upper)
            own.copy_(_to_quarters(lower, upper))
            torch.index_select(table, 0, own, out=values)

        return write


def _to_quarters(halves: Tensor, above: Tensor) -> Tensor:
    """Return in which quarter each number lies, from 0 up, in the place of ``halves``.

    Even ones are the multiples of 1/2 themselves, odd ones all between two of them.

    Args:
        halves: float, two times the numbers.
        above: rounded up.
    """
    return halves.floor_().add_(above).clamp_(4 * LOWEST, -4 * LOWEST).sub_(4 * LOWEST)


@register_form("codebook-float")
class FloatCodebookQuantizer(Codebook):
    """``Q(x) = s_r l_k``, l one of 2^b of the finite numbers of float8 (E4M3) that a tensor chooses.

    For values whose small ones are many and count: attention maps, GELU's output. It takes the place of the
    logarithmic grids: any spacing, where these have one number for it.
    """

    shares = (1.0, 0.84, 0.71, 0.59)  # an octave further the numbers are the same

    @classmethod
    def candidates(cls, bits: int) -> Tensor:
        magnitudes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        if bits == 8:  # three codes too many: zero and the outermost have two
            magnitudes = torch.cat([magnitudes, magnitudes[-1:]])
            return torch.cat([-magnitudes.flip(0), magnitudes])
        return torch.cat([-magnitudes[1:].flip(0), magnitudes])

    def _places(self, ratio: Tensor) -> Tensor:
        bounds = cell_bounds(self.table().to(ratio.dtype))
        if ratio.dtype != torch.float32:
            return nearest_places(ratio, bounds)
        # A look-up and a comparison are cheaper than `nearest_places` (CPU).
        below, padded = self._places_of_cells(), _padded(bounds)
        flat = ratio.flatten()
        cells = (flat.view(torch.int32) >> KEPT).add_(FIRST_CELL)
        place = below.index_select(0, cells)
        return place.add_(flat > padded.index_select(0, place)).view(ratio.shape)

    def _places_of_cells(self) -> Tensor:
        """The place of the level nearest to the least number of each cell, int32."""
        least = _lowest_of_cells(self.levels.device)
        return nearest_places(least, cell_bounds(self.table())).to(torch.int32)

    def _writer(self, room: int) -> Callable[[Tensor, Tensor], None]:
        below, padded = self._places_of_cells(), _padded(cell_bounds(self.table()))
        table, factor = self.levels * self.scale, self.scale.reciprocal()
        ratios, borders = torch.empty(2, room)
        cells, places = torch.empty(2, room, dtype=torch.int32)
        beyond = torch.empty(room, dtype=torch.bool)

        def write(x: Tensor, values: Tensor) -> None:
            ratio, cell, place = ratios[: len(x)], cells[: len(x)], places[: len(x)]
            border, above = borders[: len(x)], beyond[: len(x)]
            torch.mul(x, factor, out=ratio)
            torch.bitwise_right_shift(ratio.view(torch.int32), KEPT, out=cell)
            torch.index_select(below, 0, cell.add_(FIRST_CELL), out=place)
            torch.index_select(padded, 0, place, out=border)
            torch.gt(ratio, border, out=above)
            torch.index_select(table, 0, place.add_(above), out=values)

        return write


FIRST_CELL = 1 << (31 - KEPT)
"""A cell is told by sign, exponent and first four bits of the significand, as a signed integer: this added to
it makes a number from 0 up."""


def _padded(bounds: Tensor) -> Tensor:
    """Return the borders [1, n - 1] behind the places, one of infinity behind the last, [n]."""
    return torch.cat([bounds[0], bounds.new_full((1,), torch.inf)])


def _lowest_of_cells(device: torch.device) -> Tensor:
    """Return the least number of each cell, float32; those of infinity and NaN have none that matters."""
    cells = torch.arange(1 << (32 - KEPT), dtype=torch.int32, device=device) - (1 << (31 - KEPT))
    bits = cells << KEPT
    # Of negative numbers the one of largest magnitude is the least.
    bits = torch.where(bits < 0, bits | ((1 << KEPT) - 1), bits)
    return bits.view(torch.float32).nan_to_num(nan=torch.inf)
