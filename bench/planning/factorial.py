"""A factorial in a suite: factors of two levels each, and all their combinations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from vit_ptq_bench.bench.planning.toml_file import TomlFile
from vit_ptq_bench.bench.records.combination import NAME, Level, combination_label

Settings = Mapping[str, Any]

Factors = Mapping[str, Mapping[str, Settings]]
"""By factor: the settings of its two levels by name, the one without the part first."""

LEVELS = 2
"""Of a factor: without what it adds, and with it."""

MOST_FACTORS = 8
"""256 combinations of one method, for every model, bit width and seed."""

HOW = "write [factorial.METHOD.FACTOR] with a line LEVEL = { settings } for each of two levels"


def read_factors(file: TomlFile, method: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what stands under ``[factorial.METHOD.FACTOR]``.

    Raises:
        BenchError: something else than tables of settings; with file, line and key.
    """
    return {
        factor: {
            level: file.table("factorial", method, factor, level)
            for level in file.table("factorial", method, factor)
        }
        for factor in file.table("factorial", method)
    }


def combinations(factors: Factors) -> dict[str, dict[str, Any]]:
    """Return the settings of every combination by its label, the last factor changing first."""
    found = {}
    for chosen in product(*(levels.items() for levels in factors.values())):
        own = [(factor, name) for factor, (name, _) in zip(factors, chosen, strict=True)]
        levels = [Level(factor, name, name != next(iter(factors[factor]))) for factor, name in own]
        settings = {key: value for _, level in chosen for key, value in level.items()}
        found[combination_label(levels)] = settings
    return found


def problems(factors: Factors) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong with a factorial and needs no method to tell, with the keys it stands at."""
    if not LEVELS <= len(factors) <= MOST_FACTORS:
        yield (), f"must have 2 to {MOST_FACTORS} factors, not {len(factors)}: {HOW}"
    owner: dict[str, str] = {}
    for factor, levels in factors.items():
        if not re.fullmatch(NAME, factor):
            yield (factor,), _no_name("factor")
        if len(levels) != LEVELS:
            yield (
                (factor,),
                f"must have two levels, the one without the part first, not {len(levels)}",
            )
        for level, settings in levels.items():
            if not re.fullmatch(NAME, level):
                yield (factor, level), _no_name("level")
            for key in settings:
                other = owner.setdefault(key, factor)
                if other != factor:
                    yield (
                        (factor, level, key),
                        f"factor {other!r} sets it too; a setting belongs to one factor",
                    )


def _no_name(kind: str) -> str:
    return (
        f"cannot name a {kind}; use at most 20 lower-case letters, digits and . _ -, a letter or "
        "digit first"
    )
