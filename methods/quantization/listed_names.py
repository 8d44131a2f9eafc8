"""Lists of names in a suite, held against those that there are; without torch, for the plan."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.values import shown


def listed_names(names: object, setting: str, known: Collection[str], kind: str) -> tuple[str, ...]:
    """Return names as a tuple.

    Args:
        names: a list or tuple of names of ``known``, each once.
        setting: in which they stand.
        known: those that there are.
        kind: of what, for the words of an error.

    Raises:
        MethodError: something else, a name that is not known (near ones are named), or one twice; with the
            setting as its parameter.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        problem = f"{setting} must be a list of names; got {shown(names)}"
        raise MethodError(problem, parameter=setting)
    for name, times in Counter(names).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            there = f"known: {', '.join(sorted(known))}"
            words = f"did you mean {' or '.join(map(repr, near))}?" if near else there
            raise MethodError(f"unknown {kind} {shown(name)}; {words}", parameter=setting)
        if times > 1:
            raise MethodError(f"the {kind} {name!r} stands there twice", parameter=setting)
    return tuple(names)
