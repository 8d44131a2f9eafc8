"""The registry of methods."""

from __future__ import annotations

import re

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.registry import Registry

METHODS = Registry("method", "vit_ptq_bench.methods", ("errors",), MethodError)
"""Name -> method class."""


def register_method(cls: type[Method]) -> type[Method]:
    """Class decorator: add a method to the benchmark under its ``name``.

    Raises:
        MethodError: the class lacks a name, a paper or a method that it must define, or the name is not
            lower-case kebab or taken.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise MethodError(
            f"{cls.__name__}.name must be lower-case kebab, like 'repq-vit'; got {name!r}"
        )
    if not getattr(cls, "paper", ""):
        raise MethodError(f"{cls.__name__}.paper must say where the method comes from")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise MethodError(f"{cls.__name__} must define {', '.join(missing)}")
    METHODS.add(name, cls)
    return cls
