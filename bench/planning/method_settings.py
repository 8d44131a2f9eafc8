"""The settings and variants of methods in a suite, held against the methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import blamed
from vit_ptq_bench.bench.planning.factorial import combinations
from vit_ptq_bench.bench.planning.names import hint
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.spec import canonical_json
from vit_ptq_bench.methods import Method, MethodError
from vit_ptq_bench.methods.quantization.table_changes import CHANGES
from vit_ptq_bench.methods.quantization.table_changes import SETTING as TABLE
from vit_ptq_bench.methods.quantization.transforms.names import SETTING, TRANSFORMS


def check_parameters(suite: Suite) -> None:
    """Refuse settings for an unknown method, and settings the method does not have.

    Raises:
        BenchError: with file, line and key.
    """
    for name, settings in suite.parameters.items():
        _create(suite, name, {}, settings, "parameters", name)


def check_variants(suite: Suite, names: Sequence[str]) -> None:
    """Refuse variants of a method that does not run, with wrong settings, or of equal settings.

    Under ``--methods`` a method may well not run; it only has to exist.

    Raises:
        BenchError: with file, line and key.
    """
    for name, variants in suite.variants.items():
        _require_method(suite, "variants", name, names)
        common = suite.parameters.get(name, {})
        seen: dict[str, str] = {}
        for label, own in variants.items():
            method = _create(suite, name, common, own, "variants", name, label)
            first = seen.setdefault(_settings(method), label)
            if first != label:
                raise suite.error(
                    f"has the same settings as variant {first!r}", "variants", name, label
                )


def check_factorials(suite: Suite, names: Sequence[str]) -> None:
    """Refuse factorials of a method that does not run, with wrong settings, or of equal combinations.

    Raises:
        BenchError: with file, line and key.
    """
    for name, factors in suite.factorial.items():
        _require_method(suite, "factorial", name, names)
        common = suite.parameters.get(name, {})
        for factor, levels in factors.items():
            for level, own in levels.items():
                _create(suite, name, common, own, "factorial", name, factor, level)
        seen: dict[str, str] = {}
        for label, own in combinations(factors).items():
            method = _create(suite, name, common, own, "factorial", name)
            first = seen.setdefault(_settings(method), label)
            if first != label:
                raise suite.error(
                    f"{label!r} has the same settings as {first!r}", "factorial", name
                )


def check_single_draw(suite: Suite, names: Sequence[str]) -> None:
    """Refuse a method of ``single_draw`` that does not run.

    Raises:
        BenchError: with file, line and key.
    """
    for name in suite.single_draw:
        if name not in names and "methods" not in suite.overridden:
            problem = f"the suite runs no method {name!r}{hint(name, names)}"
            raise suite.error(problem, "single_draw", value=name)
        try:
            registry.method_class(name)
        except BenchError as error:
            raise suite.error(error, "single_draw", value=name) from None


def _require_method(suite: Suite, key: str, name: str, names: Sequence[str]) -> None:
    """Refuse a table of a method that the suite does not run; under ``--methods`` it only has to exist."""
    if name not in names and "methods" not in suite.overridden:
        raise suite.error(f"the suite runs no method {name!r}{hint(name, names)}", key, name)


def _settings(method: Method) -> str:
    """All settings of a method as one text."""
    return canonical_json([asdict(method.parameters), method.transforms, method.table_changes])


def _create(
    suite: Suite, name: str, common: Mapping[str, Any], own: Mapping[str, Any], *keys: str
) -> Method:
    """The method ``name`` with the settings ``common`` and, on top, ``own``.

    ``common`` is known to be right, ``own`` stands in the suite under ``keys``.

    Raises:
        BenchError: the method is unknown, or something in ``own`` is wrong.
    """
    try:
        cls = registry.method_class(name)
    except BenchError as error:
        raise suite.error(error, *keys) from None
    known = [*(field.name for field in fields(cls.Parameters)), SETTING, TABLE]
    for key in own:
        if key not in known:
            raise suite.error(f"{name} has no parameter {key!r}{hint(key, known)}", *keys, key)
    try:
        with blamed(cls, "create()"):
            return make_method(cls, {**common, **own})
    except MethodError as error:
        wrong = [error.parameter] if error.parameter in own else []
        listed = {SETTING: TRANSFORMS, TABLE: CHANGES}
        names = [key for key in listed if wrong == [key]]
        value = _unknown_name(own[names[0]], listed[names[0]]) if names else None
        raise suite.error(error, *keys, *filter(None, wrong), value=value) from None


def make_method(cls: type[Method], settings: Mapping[str, Any]) -> Method:
    """Return a method with what a suite says of it: parameters, transforms before it, changes of its table.

    Raises:
        MethodError: one of them is unknown or wrong; `MethodError.parameter` names it.
    """
    parameters = {key: value for key, value in settings.items() if key not in (SETTING, TABLE)}
    method = cls.create(parameters).with_transforms(settings.get(SETTING, ()))
    return method.with_table(settings.get(TABLE, ()))


def _unknown_name(names: object, known: Collection[str]) -> object:
    """The first of some names that is not known; the error is shown where it stands."""
    listed = names if isinstance(names, list | tuple) else ()
    return next((name for name in listed if name not in known), None)
