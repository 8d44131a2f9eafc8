"""Methods that were written for convolutional networks, held against what they begin with here."""

from __future__ import annotations

from collections.abc import Sequence

from vit_ptq_bench.bench.report.tables import Row

BEGIN_WITH = {
    "adaquant": "repq-vit",
    "brecq": "repq-vit",
    "conlocnn": "repq-vit",
    "pd-quant": "repq-vit",
    "pwlq": "repq-vit",
    "q-limit": "repq-vit",
    "qdrop": "repq-vit",
    "qft": "repq-vit",
    "subsetq": "repq-vit",
}
"""Method written for convolutional networks -> the one that it begins with, by its own docstring."""


def gains_nothing(row: Row, rows: Sequence[Row]) -> str:
    """In words, that a method written for convolutional networks is not above what it begins with.

    Args:
        row: of a table.
        rows: all of that table.

    Returns:
        Empty where it is better beyond chance, was not written for them, or one of the two has no place.
    """
    base = BEGIN_WITH.get(row.record.spec.method.name)
    other = next((one for one in rows if base is not None and one.label == base), None)
    if other is None or row.standing is None or other.standing is None:
        return ""
    if row.standing.rank is None or other.standing.rank is None:
        return ""
    if row.standing.rank < other.standing.rank:
        return ""
    return f"written for convolutional networks, and here not above {base}, with which it begins"
