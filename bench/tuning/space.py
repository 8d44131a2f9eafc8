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
from vit_ptq_bench.methods.quantization.bits import MAX_BITS, BitWidth, Protocol
from vit_ptq_bench.methods.quantization.table_changes import CHANGES, changed
from vit_ptq_bench.methods.quantization.table_changes import SETTING as TABLE

PROFILE = "profile"
"""A parameter that names a whole set of settings, and what a run may cost: it is not searched."""

METHOD, IMAGES, PROTOCOL = "method", "calibration images", "bit table"
"""Dimensions that are no settings and always there; with a space in its name, or where there are several
methods, no parameter can be called so."""

MIXED = "mixed"
"""The dimension that has the same bits on average instead of everywhere."""

GENERAL = (TABLE, MIXED)
"""Dimensions that every method can have, for ``only``."""

Value = str | int | bool | None


@dataclass(frozen=True)
class Configuration:
    """One way to run a method.

    Attributes:
        method: its name.
        images: number of calibration images.
        protocol: whose bit table: its granularity and symmetry.
        parameters: of the method, those that are searched.
        table: change of the bit table; None: as it is.
        mixed: whether the bits are shared out.
    """

    method: str
    images: int
    protocol: Protocol
    parameters: Mapping[str, Value] = field(default_factory=dict)
    table: str | None = None
    mixed: bool = False

    @property
    def key(self) -> str:
        """One text for one configuration."""
        return canonical_json(self.to_dict())

    @property
    def words(self) -> str:
        """The configuration in a line."""
        own = [f"{name}={value_word(value)}" for name, value in self.parameters.items()]
        table = self.protocol if self.table is None else f"{self.protocol},{self.table}"
        general = [f"images={self.images}", f"table={table}", *(["mixed"] if self.mixed else [])]
        return " ".join([self.method, *general, *own])

    @property
    def settings(self) -> dict[str, Any]:
        """What a suite says of the method: searched parameters and the change of the bit table."""
        # None is a default, which a suite says by leaving the key out.
        own = {key: value for key, value in self.parameters.items() if value is not None}
        return own if self.table is None else own | {TABLE: [self.table]}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data."""
        return {
            "method": self.method,
            "images": self.images,
            "protocol": self.protocol,
            "parameters": dict(self.parameters),
            "table": self.table,
            "mixed": self.mixed,
        }


def value_word(value: Value) -> str:
    """Return a value as a suite writes it, but for quotes; None in a word too."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Dimension:
    """One thing that can be set: a parameter or one of the others, and its values, at least one."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Space:
    """All combinations of the values of some dimensions, numbered from 0; the last dimension runs fastest.

    Attributes:
        methods: by name, whose settings they are; of several none has parameters of its own that are
            searched.
        dimensions: `METHOD`, `IMAGES` and `PROTOCOL` among them.
        default: the first method as it is.
        bits: at which tables are compared.
    """

    methods: Mapping[str, type[Method]]
    dimensions: tuple[Dimension, ...]
    default: Configuration
    bits: BitWidth

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
        method, images, protocol = (chosen.pop(name) for name in (METHOD, IMAGES, PROTOCOL))
        table, mixed = chosen.pop(TABLE, None), chosen.pop(MIXED, False)
        return Configuration(method, images, protocol, chosen, table, mixed)

    def number(self, configuration: Configuration) -> int:
        """Return the number of a combination.

        Raises:
            ValueError: it is none of this space.
        """
        values = dict(configuration.parameters)
        values |= {
            METHOD: configuration.method,
            IMAGES: configuration.images,
            PROTOCOL: configuration.protocol,
            TABLE: configuration.table,
            MIXED: configuration.mixed,
        }
        codes = [one.values.index(values[one.name]) for one in self.dimensions]
        return int(np.ravel_multi_index(codes, self.shape))

    def allows(self, number: int) -> bool:
        """Whether the method takes a combination, and it is not another one in other words."""
        one = self.configuration(number)
        cls = self.methods[one.method]
        if one.mixed and (cls.chooses_bits() or not cls.calibration_images):
            return False
        try:
            method = cls.create(dict(one.parameters))
        except MethodError:
            return False
        return not self._stands_for_another(one, method)

    def _stands_for_another(self, one: Configuration, method: Method) -> bool:
        """Whether the change of the table changes nothing, or makes the authors' table the common one."""
        plain = method.bit_table(self.bits, one.protocol)
        names = () if one.table is None else (one.table,)
        table = changed(plain, names)
        if names and table == plain:
            return True
        common = changed(method.bit_table(self.bits, "equal"), names)
        return one.protocol != "equal" and table == common


def space_of(
    methods: Sequence[type[Method]], bits: BitWidth, sizes: Sequence[int], only: Sequence[str] = ()
) -> Space:
    """Return the space of some methods: which of them, calibration images, bit table, and settings.

    The bit table is the authors' or the common one, where the two differ, either as it is or behind one of
    the changes that change it; bits are as given, or shared out among operations. Of a single method choices
    and switches among its parameters are dimensions too. A parameter that can be None besides its choices
    has that value only where it is the default: a suite cannot write it.

    Args:
        methods: at least one.
        bits: at which tables are compared.
        sizes: numbers of calibration images, smallest first; ignored where no method uses any.
        only: search these parameters and these of `GENERAL` alone; empty: all, but for `PROFILE`.

    Raises:
        BenchError: a name of ``only`` is none of these; or there is one combination alone.
    """
    names = {cls.name: cls for cls in methods}
    plain = [cls.create() for cls in methods]
    known = {one.name: one for one in _parameters(methods[0])} if len(methods) == 1 else {}
    for name in only:
        if name not in known and name not in GENERAL:
            raise unknown("parameter with choices", name, [*known, *GENERAL])
    general = [one for one in _general(plain, bits) if not only or one.name in only]
    chosen = [one for name, one in known.items() if name in only or (not only and name != PROFILE)]
    looked_at = any(cls.calibration_images for cls in methods)
    images: tuple[Value, ...] = tuple(sizes) if looked_at else (0,)
    dimensions = (
        Dimension(METHOD, tuple(names)),
        Dimension(IMAGES, images),
        Dimension(PROTOCOL, _protocols(plain, bits)),
        *general,
        *chosen,
    )
    own = {one.name: getattr(plain[0].parameters, one.name) for one in chosen}
    default = Configuration(methods[0].name, int(images[-1] or 0), "equal", own)
    space = Space(names, dimensions, default, bits)
    if space.size == 1:
        raise BenchError(
            f"{methods[0].name} has no choices: give several --calibration-sizes, or another method"
        )
    return space


def _protocols(methods: Sequence[Method], bits: BitWidth) -> tuple[Value, ...]:
    """Whose bit table there is to choose."""
    same = all(one.bit_table(bits, "equal") == one.bit_table(bits, "authors") for one in methods)
    return ("equal",) if same else ("equal", "authors")


def _general(methods: Sequence[Method], bits: BitWidth) -> list[Dimension]:
    """The dimensions of `GENERAL` that have more than one value for one of the methods."""
    tables = [one.bit_table(bits) for one in methods]
    changes = [
        name for name in CHANGES if any(changed(table, (name,)) != table for table in tables)
    ]
    found = [Dimension(TABLE, (None, *changes))] if changes else []
    shared = not bits.mixed and min(bits.weight, bits.activation) < MAX_BITS
    looked_at = any(one.calibration_images and not one.chooses_bits() for one in methods)
    return [*found, Dimension(MIXED, (False, True))] if shared and looked_at else found


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
