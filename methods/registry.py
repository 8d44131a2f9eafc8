"""The registry of methods."""

import re

from mmengine.registry import Registry

from methods.base import Method
from methods.errors import MethodError

METHODS = Registry("method", scope="vit_ptq_bench")
"""Name -> method class."""


def register_method(cls: type[Method]) -> type[Method]:
    """Class decorator: add a method to the benchmark under its ``name``.

    Raises:
        MethodError: the class lacks a name or paper, the name is not lower-case kebab, or it is taken.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise MethodError(
            f"{cls.__name__}.name must be lower-case kebab, like 'repq-vit'; got {name!r}"
        )
    if not getattr(cls, "paper", ""):
        raise MethodError(f"{cls.__name__}.paper must say where the method comes from")
    taken = METHODS.module_dict.get(name)
    if taken is not None:
        raise MethodError(
            f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}"
        )
    METHODS.register_module(name=name, module=cls)
    return cls
