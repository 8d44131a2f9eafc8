"""Bit operations of an image, also of runs that did not count them: those of a run of the same bit table.

Records count them since schema 8. They follow from the layers of a model and the bits of its sites, so that
another record of the same model with the same bit table tells them too.
"""

from __future__ import annotations

from collections.abc import Iterable

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import canonical_json, table_to_dict
from vit_ptq_bench.bench.report.tables import Row


def structure(record: Record) -> str:
    """Return all that bit operations follow from, as text.

    That is the model with its weights, every site with its bits and form, and the bits that the run found.
    Of a detector also the calibration images: their size is that of the image that is counted.
    """
    spec = record.spec
    return canonical_json(
        [
            [spec.task.name, spec.model.name, spec.model.weights, spec.scope],
            table_to_dict(spec.table),
            dict(record.found_bits or {}),
            [spec.task.data, spec.calibration.to_dict()] if spec.scope else None,
        ]
    )


class BitOperations:
    """The bit operations of records, their own or those of a record of the same structure.

    Args:
        records: those to look them up in. Where two of the same structure disagree, neither tells.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._counted: dict[str, int | None] = {}
        for record in records:
            number = record.bit_operations if record.ok else None
            if number is not None:
                key = structure(record)
                same = self._counted.setdefault(key, number) == number
                self._counted[key] = number if same else None

    def of(self, record: Record) -> int | None:
        """Return the bit operations of one image; None: no record tells them."""
        if record.bit_operations is not None:
            return record.bit_operations
        return self._counted.get(structure(record)) if self._counted else None

    def mean(self, row: Row) -> float | None:
        """Return the mean over the runs of a row; None: of none of them they are known."""
        return row.mean(self.of)

    def looked_up(self, row: Row) -> bool:
        """Whether those of a run of the row were counted in another run."""
        return any(
            record.bit_operations is None and self.of(record) is not None for record in row.runs
        )
