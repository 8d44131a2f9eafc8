"""Bit tables and transforms in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vit_ptq_bench.methods.quantization.bits import AT, TensorSpec
from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS


def table_words(table: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """Return which sites of ``table`` are left in floating point and which are dynamic, in two parts."""
    floating = told_together([key for key, spec in table.items() if spec.is_float])
    dynamic = told_together(
        [key for key, spec in table.items() if spec.dynamic and not spec.is_float]
    )
    return (
        f"floating point: {', '.join(floating)}" if floating else "every site quantized",
        f"dynamic: {', '.join(dynamic)}" if dynamic else "static",
    )


def told_together(keys: Iterable[str]) -> list[str]:
    """Return the keys of a bit table; operations that have their own are named, more than three counted."""
    found: list[str] = []
    places: dict[str, list[str]] = {}
    for key in keys:
        role, _, operation = key.partition(AT)
        if operation:
            places.setdefault(role, []).append(operation)
        else:
            found.append(key)
    for role, names in places.items():
        of = ", ".join(names) if len(names) <= 3 else f"{len(names)} operations"
        found.append(f"{role} of {of}")
    return found


def transform_words(transforms: Sequence[str]) -> tuple[str, ...]:
    """Return in words what is done to a model before its calibration; nothing where nothing is.

    Which operations of the model are others behind it comes after it. A name that this version does not
    know, from a record, is one of a transform like any other.
    """
    if not transforms:
        return ()
    cards = (TRANSFORMS.get(name) for name in transforms)
    others = (card.other_operation for card in cards if card is not None and card.other_operation)
    return (f"transformed first: {', then '.join(transforms)}", *others)
