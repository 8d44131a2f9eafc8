"""The answers of methods and tasks to the plan, held against what they must be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import LONGEST_NAME
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.guests import one_line, watched
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, Protocol
from vit_ptq_bench.methods.quantization.table_changes import changed
from vit_ptq_bench.values import shown

if TYPE_CHECKING:
    from vit_ptq_bench.methods import Method

PROJECT = "vit_ptq_bench."

NAMES = f"a list of names of at most {LONGEST_NAME} printable characters"


def is_text(value: object) -> bool:
    """Whether ``value`` is a text that says something."""
    return isinstance(value, str) and value != ""


def is_name(value: object) -> bool:
    """Whether ``value`` can name a model: printable, not too long for a folder, nothing around it."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and value == value.strip()
        and 0 < len(value.encode()) <= LONGEST_NAME
    )


def are_names(value: object) -> bool:
    """Whether ``value`` is a tuple or list of names of models."""
    return isinstance(value, tuple | list) and all(map(is_name, value))


def are_texts(value: object) -> bool:
    """Whether ``value`` is a tuple or list of texts."""
    return isinstance(value, tuple | list) and all(isinstance(item, str) for item in value)


def is_count(value: object) -> bool:
    """Whether ``value`` is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "data_id": ("a text", is_text),
    "weights_id": ("a text", is_text),
    "calibration_id": ("a text or None", lambda value: value is None or is_text(value)),
    "training_images": (
        "a number from 0 or None",
        lambda value: value is None or value == 0 or is_count(value),
    ),
    "folder_id": ("a text", is_text),
    "check_folder": ("a tuple of texts", are_texts),
    "weights_problem": ("a text or None", lambda value: value is None or is_text(value)),
    "weights_to_fetch": ("a text or None", lambda value: value is None or is_text(value)),
    "evaluated_images": (
        "a number above 0 or None",
        lambda value: value is None or is_count(value),
    ),
    "data_notes": ("a tuple of texts", are_texts),
    "model_names": (NAMES, are_names),
    "unlisted_names": (NAMES, are_names),
    "model_remark": ("a text or None", lambda value: value is None or is_text(value)),
    "knows_model": ("True or False", lambda value: isinstance(value, bool)),
    "architecture": ("a text or None", lambda value: value is None or is_text(value)),
    "skeleton": ("a torch module", lambda value: hasattr(value, "named_modules")),
    "operations": ("a number above 0 or None", lambda value: value is None or is_count(value)),
    "notes": ("a tuple of texts", are_texts),
    "bit_table": ("a BitTable", lambda value: isinstance(value, BitTable)),
}
"""By the name of a function: what it must return, in words and as a check."""


def ask(owner: Any, function: str, *arguments: Any) -> Any:
    """Return what a method or task answers.

    Args:
        owner: the method or task.
        function: name of one of `FORMS`.
        arguments: for it.

    Raises:
        BenchError: the answer is not of the form it must have, or a class that is none of ours raised
            something else than an error for users; class, file and function are named.
    """
    words, check = FORMS[function]
    with blamed(type(owner), f"{function}()"):
        answer = getattr(owner, function)(*arguments)
    if not check(answer):
        place = described(type(owner))
        raise BenchError(f"{place}: {function}() must return {words}, not {shown(answer)}")
    return answer


def asked_table(method: Method, bits: BitWidth, protocol: Protocol) -> BitTable:
    """Return the bit table that a method plans with: its own, behind the changes that were asked for.

    Raises:
        BenchError: as `ask`.
    """
    table: BitTable = ask(method, "bit_table", bits, protocol)
    return changed(table, method.table_changes)


@contextmanager
def blamed(cls: type, what: str) -> Iterator[None]:
    """Name class, file and ``what`` in an error of a class that is none of ours; one of ours is a defect.

    Raises:
        BenchError: for anything but an error for users.
    """
    if cls.__module__.startswith(PROJECT):
        yield
        return
    try:
        with watched():
            yield
    except UserError:
        raise
    except Exception as error:  # code of somebody else can fail in any way
        raise BenchError(f"{described(cls)}: {what} failed: {one_line(error)}") from error


def described(cls: type) -> str:
    """A class by name and file, for an error."""
    name = getattr(cls, "name", cls.__name__)
    try:
        return f"{name} ({inspect.getfile(cls)})"
    except (TypeError, OSError):  # it was made by hand
        return f"{name} ({cls.__module__})"
