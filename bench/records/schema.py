"""What the file of a record must look like, as data, and the check of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 2
"""Version of the layout; raise it when a key is added, renamed or changes its meaning."""


Check = Callable[[Any], bool]


STATUSES = ("ok", "failed", "oom", "timeout", "skipped")


def _is(*types: type) -> Check:
    """A check for instances; True and False do not pass as numbers."""
    return lambda value: isinstance(value, types) and not isinstance(value, bool)


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_optional_number, value))


_text = _is(str)


_whole = _is(int)


_number = _is(int, float)


_mapping = _is(dict)


_optional_text = _optional(_text)


_optional_number = _optional(_number)


_table = _dict_of(_mapping)


_numbers = _dict_of(_optional_number)


FIELDS: dict[str, tuple[str, Check]] = {
    "run_id": ("a text", _text),
    "spec": ("an object", _mapping),
    "status": (f"one of {', '.join(STATUSES)}", STATUSES.__contains__),
    "fidelity": ("a text", _text),
    "convention": ("a text or null", _optional_text),
    "common_table": ("a bit table or null", _optional(_table)),
    "primary_metric": ("a text or null", _optional_text),
    "metrics": ("an object of numbers", _numbers),
    "intervals": ("an object of pairs of numbers", _dict_of(_interval)),
    "standard_errors": ("an object of numbers", _numbers),
    "n": ("a whole number or null", _optional(_whole)),
    "seconds": ("an object of numbers", _numbers),
    "peak_memory_mb": ("a number or null", _optional_number),
    "size_mb": ("a number or null", _optional_number),
    "environment": ("an object", _mapping),
    "error": ("an object or null", _optional(_mapping)),
    "outcomes_sha256": ("a text or null", _optional_text),
    "started": ("a text or null", _optional_text),
    "finished": ("a text or null", _optional_text),
    "variant": ("a text or null", _optional_text),
    "schema": ("a whole number", _whole),
}
"""Every key of a record: what it must be, in words and as a check."""


SPEC: dict[str, tuple[str, Check]] = {
    "method.name": ("a text", _text),
    "method.version": ("a whole number", _whole),
    "method.parameters": ("an object", _mapping),
    "model.name": ("a text", _text),
    "model.weights": ("a text or null", _optional_text),
    "task.name": ("a text", _text),
    "task.version": ("a whole number", _whole),
    "task.data": ("a text or null", _optional_text),
    "task.limit": ("a whole number or null", _optional(_whole)),
    "bits": ("a text", _text),
    "protocol": ("a text", _text),
    "table": ("a bit table", _table),
    "calibration.images": ("a whole number", _whole),
    "calibration.draw": ("a whole number", _whole),
    "seed": ("a whole number", _whole),
    "precision": ("a text", _text),
}
"""What readers rely on inside ``spec``; a dot goes one level down."""


def upgraded(data: object) -> object:
    """``data`` in the present layout; schema 1 had no ``variant``."""
    if isinstance(data, dict) and data.get("schema") == 1:
        return {"variant": None} | data | {"schema": SCHEMA}
    return data


def problem(data: object) -> str | None:
    """What is wrong with ``data`` as the content of a record file; None when nothing is."""
    if not isinstance(data, dict):
        return "the file does not hold a JSON object"
    version = data.get("schema")
    if version != SCHEMA:
        return f"schema is {version!r}, this program reads {SCHEMA}"
    return _keys(data) or _spec(data["spec"]) or _complete(data)


def _keys(data: Mapping[str, Any]) -> str | None:
    missing, unknown = sorted(set(FIELDS) - set(data)), sorted(set(data) - set(FIELDS))
    if missing:
        return f"missing: {', '.join(missing)}"
    if unknown:
        return f"unknown: {', '.join(unknown)}"
    for key, (kind, check) in FIELDS.items():
        if not check(data[key]):
            return f"{key} must be {kind}, not {_short(data[key])}"
    return None


def _spec(spec: Mapping[str, Any]) -> str | None:
    for path, (kind, check) in SPEC.items():
        value: Any = spec
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return f"missing: spec.{path}"
            value = value[key]
        if not check(value):
            return f"spec.{path} must be {kind}, not {_short(value)}"
    return None


def _complete(data: Mapping[str, Any]) -> str | None:
    """An ok run has a primary metric, or it could not be ranked."""
    if data["status"] != "ok":
        return None
    if data["metrics"].get(data["primary_metric"]) is None:
        return f"status is ok, but there is no finite metric {data['primary_metric']!r}"
    return None if data["n"] is not None else "status is ok, but n is null"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
