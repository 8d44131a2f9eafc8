"""Bit tables and notes in words: the footnotes of the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.methods.api.words import table_words, told_together, transform_words
from vit_ptq_bench.methods.quantization.bits import (
    LINEAR_ROLES,
    OPTIONAL_KEYS,
    SITE_KEYS,
    TensorSpec,
    role_of,
)

NAMED = 3
"""Sites that are named in a footnote; more are counted."""

Table = Mapping[str, TensorSpec]


def deviation(record: Record) -> str:
    """In words, where the record's bit table differs from the common one; empty if nowhere."""
    if record.common_table is None or record.fidelity == REFERENCE_FIDELITY:
        return ""
    return differences(record.spec.table, record.common_table)


def convention(record: Record) -> str:
    """In words, what a run leaves in floating point, what is dynamic, transforms, notes, foreign images."""
    if record.common_table is None:  # it ended before the method was asked
        return ""
    words = table_words(_in_order(record.spec.table))
    chosen = chosen_words(record)
    transforms = transform_words(record.spec.method.transforms)
    marking = record.spec.calibration.marking
    return "; ".join(filter(None, [*words, *chosen, *transforms, *record.notes, marking]))


def chosen_words(record: Record) -> tuple[str, ...]:
    """In words, which bits were chosen for which sites; nothing where nobody was to choose.

    At a width with at most `NAMED` sites these are named, else counted.
    """
    if record.found_bits is None:
        return ()
    by_width: dict[int, list[str]] = {}
    for key, bits in record.found_bits.items():
        by_width.setdefault(bits, []).append(key)
    told = [
        f"{bits} bits for {_sites(keys) if len(keys) <= NAMED else f'{len(keys)} sites'}"
        for bits, keys in sorted(by_width.items())
    ]
    return (f"bits chosen by operation: {', '.join(told) or 'everywhere those of the width'}",)


def _in_order(table: Table) -> Table:
    """A table with its sites in the order of bit tables; a file has them by the alphabet."""
    known = [*SITE_KEYS, *OPTIONAL_KEYS]
    order = [site for site in known if site in table] + [
        site for site in table if site not in known
    ]
    return {site: table[site] for site in order}


def differences(table: Table, common: Table) -> str:
    """In words, where a bit table differs from the common one; empty if nowhere."""
    changed: dict[str, list[str]] = {}
    for site, spec in table.items():
        words = _changes(spec, common.get(site, common.get(role_of(site))))
        if words:
            changed.setdefault(words, []).append(site)
    return "; ".join(f"{_sites(sites)}: {words}" for words, sites in changed.items())


def _changes(spec: TensorSpec, common: TensorSpec | None) -> str:
    if spec.is_float:
        return "" if common is not None and common.is_float else "floating point"
    changed = [
        item.name
        for item in fields(spec)
        if common is None or getattr(spec, item.name) != getattr(common, item.name)
    ]
    words = {
        "bits": f"{spec.bits} bit",
        "granularity": f"per {spec.granularity}",
        "symmetric": "symmetric" if spec.symmetric else "affine",
        "dynamic": "dynamic" if spec.dynamic else "static",
        "scheme": spec.scheme,
    }
    return ", ".join(words[name] for name in changed)


def _sites(sites: Sequence[str]) -> str:
    """Shorten ``a.weight, b.weight, ...`` that covers every linear layer."""
    whole = [site for site in sites if site == role_of(site)]
    text = []
    for kind in ("weight", "input"):
        of_kind = [site for site in whole if site.endswith(f".{kind}")]
        if len(of_kind) > 3:
            left_out = sorted(set(LINEAR_ROLES) - {site.split(".")[0] for site in of_kind})
            but = f" but {', '.join(left_out)}" if left_out else ""
            text.append(f"every {kind}{but}")
        else:
            text += of_kind
    single = [site for site in sites if site not in whole]
    return ", ".join([*text, *(site for site in whole if "." not in site), *told_together(single)])
