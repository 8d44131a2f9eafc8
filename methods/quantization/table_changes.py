"""Changes of a bit table by name, which any method can run on; without torch, for the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    ROUNDED_SCHEMES,
    WEIGHT_SITES,
    BitTable,
    role_of,
)
from vit_ptq_bench.methods.quantization.listed_names import listed_names

SETTING = "table"
"""The setting of every method that names them; no method may have a parameter of this name."""

ONE_SIDED = ("attention",)
"""Sites without negative values, where half of a symmetric grid's codes would stand for nothing."""


@dataclass(frozen=True)
class TableChange:
    """One change.

    Attributes:
        description: for `bench list table-changes`.
        apply: gives the changed table; sites in floating point and of another form than it is for stay.
    """

    description: str
    apply: Callable[[BitTable], BitTable]


def _uniform(table: BitTable) -> list[str]:
    """The sites of a table that have a uniform quantizer with scales as they come."""
    return [key for key, spec in table.items() if spec.bits != FLOAT and spec.scheme == "uniform"]


def _symmetric(table: BitTable) -> BitTable:
    keys = [key for key in _uniform(table) if role_of(key) not in ONE_SIDED]
    return table.change(keys, symmetric=True)


def _one_scale(table: BitTable) -> BitTable:
    keys = [key for key in _uniform(table) if role_of(key) in WEIGHT_SITES]
    return table.change(keys, granularity="tensor")


def _rounded(scheme: str) -> Callable[[BitTable], BitTable]:
    def apply(table: BitTable) -> BitTable:
        keys = [key for key in _uniform(table) if not table[key].dynamic]
        return table.change(keys, scheme=scheme)

    return apply


POWER_OF_TWO, FIXED_POINT = ROUNDED_SCHEMES

CHANGES: Mapping[str, TableChange] = {
    "symmetric": TableChange(
        "uniform grids without a zero point, but for attention maps", _symmetric
    ),
    "tensor-weights": TableChange(
        "one scale for a weight in the place of one for each output channel", _one_scale
    ),
    "power-of-two": TableChange(
        "scales of uniform grids rounded to powers of two", _rounded(POWER_OF_TWO)
    ),
    "fixed-point": TableChange(
        "scales of uniform grids rounded to a mantissa and a shift", _rounded(FIXED_POINT)
    ),
}
"""Name, in lower-case kebab -> change."""


def check_changes(names: object) -> tuple[str, ...]:
    """Return names of changes as a tuple.

    Args:
        names: a list or tuple of names, each once; they act in this order.

    Raises:
        MethodError: something else, a name that no change has (near ones are named), one twice, or two ways
            to round scales.
    """
    found = listed_names(names, SETTING, CHANGES, "change of the bit table")
    if {"power-of-two", "fixed-point"} <= set(found):
        problem = "scales are rounded to powers of two or to fixed point, not to both"
        raise MethodError(problem, parameter=SETTING)
    return found


def changed(table: BitTable, names: tuple[str, ...]) -> BitTable:
    """Return ``table`` behind the changes ``names``, from `check_changes`."""
    for name in names:
        table = CHANGES[name].apply(table)
    return table
