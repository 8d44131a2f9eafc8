"""Levels chosen from the 256 numbers of an 8-bit type: codes of few bits, arithmetic of eight."""

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

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest values; gradients pass straight through."""
        # By the reciprocal, as the uniform form does it.
        places = self._places(x.detach() * spread(self.scale.reciprocal(), x, self.axis))
        levels, one = self.levels.to(x.dtype), self.scale.numel() == 1
        values = (levels * self.scale if one else levels).index_select(0, places.flatten())
        values = values.view(x.shape)
        if not one:
            values = values * spread(self.scale, x, self.axis)
        return straight_through(x, values) if x.requires_grad else values


@register_form("codebook")
class CodebookQuantizer(Codebook):
    """``Q(x) = s_r l_k``, l one of 2^b of the integers -128 to 127 that a tensor chooses."""

    shares = (1.0, 0.7, 0.5, 0.35)  # the smaller, the finer is the grid inside

    @classmethod
    def candidates(cls, bits: int) -> Tensor:
        return torch.arange(float(LOWEST), float(HIGHEST) + 1)

    def _places(self, ratio: Tensor) -> Tensor:
        # Borders between integers are multiples of 1/2: a look-up is cheaper than `nearest_places` (CPU).
        cells = torch.arange(4 * LOWEST, 4 * -LOWEST + 1, device=ratio.device)
        places = nearest_places(cells.to(self.levels.dtype) / 4, cell_bounds(self.table()))
        return places.to(torch.int32).index_select(0, _quarter(ratio)).view(ratio.shape)


def _quarter(ratio: Tensor) -> Tensor:
    """Return in which quarter each number lies, int32, flat.

    Even ones are the multiples of 1/2 themselves, odd ones all between two of them.
    """
    halves = 2 * ratio
    above = halves.ceil()
    cells = halves.floor_().add_(above).clamp_(4 * LOWEST, -4 * LOWEST)
    return cells.sub_(4 * LOWEST).to(torch.int32).flatten()


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
        below = nearest_places(_lowest_of_cells(ratio.device), bounds)
        padded = torch.cat([bounds[0], bounds.new_full((1,), torch.inf)])
        place = below.to(torch.int32).index_select(0, _cell(ratio))
        beyond = ratio.flatten() > padded.index_select(0, place)
        return place.add_(beyond).view(ratio.shape)


def _cell(x: Tensor) -> Tensor:
    """Return sign, exponent and first four bits of the significand as one number from 0 up, int32, flat."""
    bits = x.contiguous().view(torch.int32).flatten()
    return (bits >> KEPT).add_(1 << (31 - KEPT))


def _lowest_of_cells(device: torch.device) -> Tensor:
    """Return the least number of each cell, float32; those of infinity and NaN have none that matters."""
    cells = torch.arange(1 << (32 - KEPT), dtype=torch.int32, device=device) - (1 << (31 - KEPT))
    bits = cells << KEPT
    # Of negative numbers the one of largest magnitude is the least.
    bits = torch.where(bits < 0, bits | ((1 << KEPT) - 1), bits)
    return bits.view(torch.float32).nan_to_num(nan=torch.inf)
