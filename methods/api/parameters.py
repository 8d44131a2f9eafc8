"""Settings of methods: their types and bounds, and those that several methods have in common."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.table_changes import SETTING as TABLE
from vit_ptq_bench.methods.quantization.transforms.names import SETTING
from vit_ptq_bench.values import out_of_bounds, shown

Default = TypeVar("Default")

MANY = 1_000_000
"""Images of a batch, candidates of a search, rounds: more than anybody means."""


def bounded(default: Default, **bounds: float) -> Default:
    """Return a dataclass field of a number, with what bounds it.

    Args:
        default: of the field.
        bounds: ``at_least``, ``more_than``, ``at_most`` or ``less_than``; see `out_of_bounds` of
            `vit_ptq_bench.values`.
    """
    field: Default = dataclasses.field(default=default, metadata=bounds)
    return field


def counted(default: int, at_least: int = 1) -> int:
    """Return a dataclass field of a number of things; more than `MANY` are refused."""
    return bounded(default, at_least=at_least, at_most=MANY)


ADDED = "added"
"""Metadata of a setting that a method did not have from the beginning."""


def added(default: Default, **bounds: float) -> Default:
    """Return a field like `bounded`'s of a setting whose default leaves the method as it was without it.

    It is part of a run's identity where it is set alone, so that runs from before it keep theirs, and no
    version has to rise for it.
    """
    field: Default = dataclasses.field(default=default, metadata={**bounds, ADDED: True})
    return field


def identity_of(
    parameters: Any, profiles: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the settings that identify a run: all of them, but for `added` ones at their default.

    Args:
        parameters: of a method.
        profiles: the method's; what the profile sets is told, whatever it is set to.
    """
    told = dataclasses.asdict(parameters)
    profile = (profiles or {}).get(str(told.get("profile")), {})
    for field in dataclasses.fields(parameters):
        default = told[field.name] == field.default
        if field.metadata.get(ADDED) and default and field.name not in profile:
            del told[field.name]
    return told


def checked(what: str, value: Any, expected: Any, facts: Mapping[str, Any]) -> Any:
    """Return a parameter's value as its type has it: what is one setting is one value, so one run.

    1 becomes 1.0 where a float is wanted, -0.0 becomes 0.0, and a choice becomes the very one that is meant.

    Args:
        what: ``method.parameter``.
        value: the value.
        expected: its type: bool, int, float, str, a Literal, or a union of these with None.
        facts: metadata of the field, with its bounds.

    Raises:
        MethodError: another type, or out of bounds.
    """
    name = what.rpartition(".")[2]
    kinds = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    problem = out_of_bounds(value, facts)
    for kind in kinds:
        found = _as(kind, value)
        if found and problem:
            raise MethodError(f"{what} {problem}", parameter=name)
        if found:
            return found[0]
    names = " or ".join(map(_words, kinds))
    raise MethodError(f"{what} must be {names}; got {shown(value)}", parameter=name)


def _as(kind: Any, value: Any) -> tuple[Any, ...]:
    """``value`` as a ``kind``, alone in a tuple; empty where it is none."""
    if get_origin(kind) is Literal:
        # Equal is not enough: True == 1, and they would be two identities.
        return tuple(
            known for known in get_args(kind) if type(known) is type(value) and known == value
        )
    if kind is float and type(value) in (int, float):
        return (float(value) + 0.0,) if out_of_bounds(value, {}) is None else (value,)
    return (value,) if type(value) is kind else ()


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is types.NoneType or get_origin(kind) is not None:
        return str(kind).replace("<class 'NoneType'>", "None")
    return getattr(kind, "__name__", str(kind))


def check_parameters(cls: type, owner: str) -> None:
    """Refuse a class of settings from which no identity of a run can be made.

    Args:
        cls: what a method calls its ``Parameters``.
        owner: name of the method's class.

    Raises:
        MethodError: it is no frozen dataclass, has a setting without default, a default that has no place in
            JSON, or a setting of a name that is taken.
    """
    what = f"{owner}.Parameters"
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise MethodError(f"{what} must be a dataclass; got {shown(cls)}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise MethodError(f"{what} must be frozen: write @dataclass(frozen=True)")
    for field in dataclasses.fields(cls):
        if field.name in (SETTING, TABLE):
            raise MethodError(
                f"{what}.{field.name} must be called otherwise: every method has that setting"
            )
        if field.default is field.default_factory is dataclasses.MISSING:
            raise MethodError(f"{what}.{field.name} needs a default")
    for name, value in dataclasses.asdict(cls()).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise MethodError(
                f"{what}.{name} must have a default that JSON can hold; got {shown(value)}"
            ) from None


@dataclass(frozen=True)
class NoParameters:
    """The parameters of a method that has none."""


@dataclass(frozen=True)
class ReparameterizationParameters:
    """Settings of `quantization.reparameterization.calibrate_reparameterized`.

    Attributes:
        zero_point: ``integer`` rounds the averaged zero point, so that codes are integers;
            ``fractional`` keeps the mean, as RepQ-ViT's released code does.
        scale: the per-tensor scale is the ``mean`` (paper) or ``median`` of the channels' scales.
    """

    zero_point: Literal["integer", "fractional"] = "integer"
    scale: Literal["mean", "median"] = "mean"
