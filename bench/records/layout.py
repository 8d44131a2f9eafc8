"""The text of a record's file: JSON for people and for git, in a third of the room that plain JSON takes.

Sites of a bit table that are alike are told once, and what fits a line stands on one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WIDTH = 120
"""Characters of a line."""

SITES = "sites"
"""Key of the sites that a group's description is of."""


def to_text(data: Mapping[str, Any]) -> str:
    """Return the text of a record's data, which has its bit table by site."""
    spec = data["spec"]
    grouped = {**data, "spec": {**spec, "table": _grouped(spec["table"])}}
    return f"{_laid_out(grouped, '')}\n"


def by_site(data: Any) -> Any:
    """Return the data of a parsed text with the bit table by site; what is no such text comes as it is."""
    if not isinstance(data, dict) or not isinstance(spec := data.get("spec"), dict):
        return data
    if not isinstance(table := spec.get("table"), list):
        return data
    try:
        sites = {
            site: {key: value for key, value in group.items() if key != SITES}
            for group in table
            for site in group[SITES]
        }
        whole = len(sites) == sum(len(group[SITES]) for group in table)
    except (AttributeError, KeyError, TypeError):
        return data
    return data | {"spec": spec | {"table": sites}} if whole else data


def _grouped(table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Descriptions, each once with its sites, in the order of their first sites."""
    groups: dict[str, list[str]] = {}
    for site, description in sorted(table.items()):
        groups.setdefault(json.dumps(description, sort_keys=True), []).append(site)
    return [json.loads(text) | {SITES: sites} for text, sites in groups.items()]


def _laid_out(data: Any, indent: str) -> str:
    line = json.dumps(data, sort_keys=True, allow_nan=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(data, dict | list) or not data:
        return line
    inner = f"{indent} "
    if isinstance(data, list):
        items = [f"{inner}{_laid_out(item, inner)}" for item in data]
    else:
        items = [f"{inner}{json.dumps(k)}: {_laid_out(v, inner)}" for k, v in sorted(data.items())]
    begin, end = "[]" if isinstance(data, list) else "{}"
    return f"{begin}\n" + ",\n".join(items) + f"\n{indent}{end}"
