"""The space of a search: how a method can be set, as a product of small dimensions."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import unknown
from vit_ptq_bench.bench.records.spec import canonical_json
from vit_ptq_bench.methods import Method, MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, Protocol

PROFILE = "profile"
"""A parameter that names a whole set of settings, and what a run may cost: it is not searched."""

IMAGES, TABLE = "calibration images", "bit table"
"""Dimensions that are no parameters; with a space in it, no parameter can be called so."""

Value = str | int | bool | None


@dataclass(frozen=True)
class Configuration:
    """One way to run a method.

    Attributes:
        images: number of calibration images.
        protocol: whose bit table: its granularity and symmetry.
        parameters: of the method, those that are searched.
    """

    images: int
    protocol: Protocol
    parameters: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """One text for one configuration."""
        return canonical_json(self.to_dict())

    @property
    def words(self) -> str:
        """The configuration in a line."""
        own = [f"{name}={_word(value)}" for name, value in self.parameters.items()]
        return " ".join([f"images={self.images}", f"table={self.protocol}", *own])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data."""
        return {
            "images": self.images,
            "protocol": self.protocol,
            "parameters": dict(self.parameters),
        }


def _word(value: Value) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Dimension:
    """One thing that can be set: a parameter, `IMAGES` or `TABLE`, and its values, at least one."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Space:
    """All combinations of the values of some dimensions, numbered from 0; the last dimension runs fastest.

    Attributes:
        method: whose settings they are.
        dimensions: `IMAGES` and `TABLE` among them.
        default: the method as it is.
    """

    method: type[Method]
    dimensions: tuple[Dimension, ...]
    default: Configuration

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """How many values each dimension has."""
        return tuple(len(one.values) for one in self.dimensions)

    @cached_property
    def size(self) -> int:
        """How many combinations there are, also those that the method refuses."""
        return prod(self.shape)

    def codes(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which value each dimension has in the combinations ``numbers`` [n]: [n, dimensions]."""
        return np.stack(np.unravel_index(numbers, self.shape), axis=1).astype(np.int64)

    def configuration(self, number: int) -> Configuration:
        """Return a combination by its number."""
        codes = self.codes(np.array([number]))[0]
        chosen = {
            one.name: one.values[code] for one, code in zip(self.dimensions, codes, strict=True)
        }
        return Configuration(chosen.pop(IMAGES), chosen.pop(TABLE), chosen)

    def number(self, configuration: Configuration) -> int:
        """Return the number of a combination.

        Raises:
            ValueError: it is none of this space.
        """
        values = dict(configuration.parameters)
        values |= {IMAGES: configuration.images, TABLE: configuration.protocol}
        codes = [one.values.index(values[one.name]) for one in self.dimensions]
        return int(np.ravel_multi_index(codes, self.shape))

    def allows(self, number: int) -> bool:
        """Whether the method takes a combination."""
        try:
            self.method.create(dict(self.configuration(number).parameters))
        except MethodError:
            return False
        return True


def space_of(
    method: type[Method], bits: BitWidth, sizes: Sequence[int], only: Sequence[str] = ()
) -> Space:
    """Return the space of a method: its choices and switches, calibration images and bit table.

    The bit table is its authors' or the common one, where the two differ. A parameter that can be None
    besides its choices has that value only where it is the default: a suite cannot write it.

    Args:
        method: the method.
        bits: at which the two tables are compared.
        sizes: numbers of calibration images, smallest first; ignored where the method uses none.
        only: search these parameters alone; empty: all that have choices, but for `PROFILE`.

    Raises:
        BenchError: a name of ``only`` is no parameter with choices; or there is one combination alone.
    """
    plain = method.create()
    known = {one.name: one for one in _parameters(method)}
    for name in only:
        if name not in known:
            raise unknown("parameter with choices", name, known)
    chosen = [known[name] for name in only or known if only or name != PROFILE]
    tables: tuple[Value, ...] = ("equal",)
    if plain.bit_table(bits, "equal") != plain.bit_table(bits, "authors"):
        tables = ("equal", "authors")
    images: tuple[Value, ...] = tuple(sizes) if method.calibration_images else (0,)
    dimensions = (Dimension(IMAGES, images), Dimension(TABLE, tables), *chosen)
    own = {one.name: getattr(plain.parameters, one.name) for one in chosen}
    default = Configuration(int(images[-1] or 0), "equal", own)
    space = Space(method, dimensions, default)
    if space.size == 1:
        raise BenchError(
            f"{method.name} has no choices: give several --calibration-sizes, or another method"
        )
    return space


def _parameters(method: type[Method]) -> list[Dimension]:
    """The parameters that are choices or switches, in order."""
    found = []
    hints = get_type_hints(method.Parameters)
    defaults = method.create().parameters
    for item in fields(method.Parameters):
        values = _values(hints[item.name], getattr(defaults, item.name))
        if len(values) > 1:
            found.append(Dimension(item.name, values))
    return found


def _values(kind: Any, default: Any) -> tuple[Value, ...]:
    """The values of a type that is made of choices, the default first; nothing of any other type."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    values: list[Value] = []
    for one in kinds:
        if one is bool:
            values += [False, True]
        elif get_origin(one) is Literal:
            values += get_args(one)
        elif one is not types.NoneType:
            return ()
    rest = [value for value in values if value is not default and value != default]
    return (default, *rest) if values else ()
