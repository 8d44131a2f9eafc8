"""Modules of optional extras, asked for where they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vit_ptq_bench.bench.errors import BenchError


def require(extra: str, *modules: str) -> None:
    """Refuse to go on without the modules that an extra brings.

    Raises:
        BenchError: one is missing; with the command that installs it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise BenchError(
            f"this needs {', '.join(missing)}, which an extra brings: "
            f"pip install -c constraints.txt -e '.[{extra}]'"
        )


def brought(extra: str, module: str) -> Any:
    """Return a module that an extra brings.

    Raises:
        BenchError: it is missing, see `require`.
    """
    require(extra, module.partition(".")[0])
    return import_module(module)
