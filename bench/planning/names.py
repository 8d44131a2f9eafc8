"""Names as people type them: near matches and globs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.values import shown

LONGEST = 100
"""Characters of a name for which near matches are looked for."""

GLOB_CHARACTERS = frozenset("*?[")


def hint(name: str, known: Iterable[str]) -> str:
    """End of an error message about an unknown ``name``: its near matches, else what is known."""
    names = sorted(known)
    if len(name) > LONGEST:
        return ""
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.55)
    if not near:
        near = [other for other in names if name.lower() in other][:3]
    if near:
        return "; did you mean " + " or ".join(repr(other) for other in near) + "?"
    if not names:
        return "; there are none"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}"


def unknown(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """The error for a ``name`` that no ``kind`` (method, task, model, suite, key) has."""
    return BenchError(f"unknown {kind} {shown(name)}{hint(name, known)}")


def is_glob(name: str) -> bool:
    """Whether ``name`` is a pattern and not a name."""
    return not GLOB_CHARACTERS.isdisjoint(name)


def choose(kind: str, patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of ``known`` that ``patterns`` (names or globs) select, each once.

    Names come in the order of the patterns, the matches of one glob in the order of ``known``.

    Raises:
        BenchError: a name is unknown, or a glob matches nothing.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if pattern in known:
            matches = [pattern]
        if not matches and is_glob(pattern):
            raise BenchError(f"no {kind} matches {shown(pattern)}{hint(pattern.strip('*'), known)}")
        if not matches:
            raise unknown(kind, pattern, known)
        chosen.update(dict.fromkeys(matches))
    return list(chosen)
