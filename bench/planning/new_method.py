"""A new method's file, written from a template that keeps the contract."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.values import shown

TEMPLATE = files("vit_ptq_bench.bench.planning") / "method_template.py.txt"


def write_method(name: str, folder: Path) -> Path:
    """Write a working method into ``folder`` and return the file's path; nothing is overwritten.

    Args:
        name: of the method, lower-case kebab.
        folder: must exist.

    Raises:
        BenchError: the name is no name or taken, or the file is there or cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise BenchError(
            f"{shown(name)} is no name of a method; use lower-case kebab, like my-method"
        )
    if name in registry.methods():
        raise BenchError(f"there is a method {name!r} already; choose another name")
    path = folder / f"{name.replace('-', '_')}.py"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(method_text(name))
    except FileExistsError:
        raise BenchError(f"{path} is there already; it was left as it is") from None
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error
    return path


def method_text(name: str) -> str:
    """Return the text of the file."""
    title = "".join(part.capitalize() for part in name.split("-"))
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("CLASS", title).replace("TITLE", title).replace("NAME", name)
