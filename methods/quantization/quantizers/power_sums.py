"""Tables of weights whose multiplication is a shift or two: sums of two powers of two.

SubsetQ chooses magnitudes from sums of two powers, CoNLoCNN signed numbers of at most two signed digits.
"""

from itertools import combinations, product
from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.quantizers.levels import TableQuantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

FIRST, SECOND = (1.0, 0.5, 0.125, 0.0), (1.0, 0.25, 0.0625, 0.0)
"""Summands of SubsetQ's universal set."""

DIGITS = 13
"""Binary places of a signed-powers number: with them there are 293 numbers, more than the codes of 8 bits."""

SUBSET_BITS = 4
"""Most bits for which the universal set has as many magnitudes as there are to choose."""


@register_form("subset")
class SubsetQuantizer(TableQuantizer):
    """``Q(w) = +- s_r u_k``, u one of 2^(b-1) magnitudes that a layer chooses: sign and b - 1 bits of index.

    Source: Oh et al., ECCV 2022: the magnitudes are chosen from the 15 different numbers ``(u + v) / 2``, u
    of 1, 1/2, 1/8, 0 and v of 1, 1/4, 1/16, 0, so that a product is two shifts and a sum. Ours: beyond 4
    bits they are too few, and a layer chooses from the multiples of ``2^-b`` up to 1, half of the numbers of
    b + 1 bits. A set with zero has two codes for it.
    """

    mirrored: ClassVar[bool] = True

    @classmethod
    def candidates(cls, bits: int) -> Tensor:
        if bits > SUBSET_BITS:
            return torch.arange(2**bits + 1).float().div(2**bits)
        return torch.tensor(sorted({(u + v) / 2 for u, v in product(FIRST, SECOND)}))


@register_form("signed-powers")
class SignedPowersQuantizer(TableQuantizer):
    """``Q(w) = s_r l_k``, l one of 2^b numbers of at most two signed binary digits that a layer chooses.

    ``+-2^-i``, ``+-(2^-i +- 2^-j)`` and 0, with 0 <= i < j < min(2b, 13): one or two shifts a product.
    Source: CoNLoCNN (Hanif et al., IJCNN 2022), of which we know the abstract: exponents and choice are ours.
    """

    mirrored: ClassVar[bool] = False

    @classmethod
    def candidates(cls, bits: int) -> Tensor:
        powers = [2.0**-i for i in range(min(2 * bits, DIGITS))]
        pairs = list(combinations(powers, 2))
        magnitudes = {0.0, *powers, *(a + b for a, b in pairs), *(a - b for a, b in pairs)}
        return torch.tensor(sorted(magnitudes | {-number for number in magnitudes}))
