"""Bit tables in words: the footnotes of the leaderboard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record


def deviation(record: Record) -> str:
    """In words, where the record's bit table differs from the common one; empty if nowhere."""
    if record.common_table is None or record.fidelity == REFERENCE_FIDELITY:
        return ""
    return differences(record.spec["table"], record.common_table)


def differences(table: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    """In words, where a bit table differs from the common one; empty if nowhere."""
    changed: dict[str, list[str]] = {}
    for site, spec in table.items():
        words = _changes(spec, common.get(site, {}))
        if words:
            changed.setdefault(words, []).append(site)
    return "; ".join(f"{_sites(sites)}: {words}" for words, sites in changed.items())


def own_words(convention: str) -> str:
    """What a method's convention says beyond its bit table, which `differences` tells."""
    words = (" ".join(part.split()) for part in convention.split(";"))
    return "; ".join(part for part in words if part and not _FROM_TABLE.match(part))


_FROM_TABLE = re.compile(r"every site quantized$|static$|floating point: |dynamic: ")
"""The parts of `methods.Method.convention` that repeat the bit table."""


def _changes(spec: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    if spec["bits"] == 32:
        return "" if common.get("bits") == 32 else "floating point"
    words = []
    for key, value in spec.items():
        if value == common.get(key):
            continue
        if key in ("symmetric", "dynamic"):
            words.append(
                {"symmetric": "affine symmetric", "dynamic": "static dynamic"}[key].split()[value]
            )
        else:
            words.append(
                {"bits": f"{value} bit", "granularity": f"per {value}"}.get(key, str(value))
            )
    return ", ".join(words)


def _sites(sites: Sequence[str]) -> str:
    """Shorten ``a.weight, b.weight, ...`` that covers every linear layer."""
    text = []
    for kind in ("weight", "input"):
        of_kind = [site for site in sites if site.endswith(f".{kind}")]
        if len(of_kind) > 3:
            left_out = sorted(_LINEAR - {site.split(".")[0] for site in of_kind})
            but = f" but {', '.join(left_out)}" if left_out else ""
            text.append(f"every {kind}{but}")
        else:
            text += of_kind
    return ", ".join([*text, *(site for site in sites if "." not in site)])


_LINEAR = {"patch_embed", "qkv", "proj", "fc1", "fc2", "reduction", "head"}
