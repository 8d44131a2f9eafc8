"""The smallest, or quickest, of all rows of a model that lose little enough against full precision."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import hint, unknown
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store, folders_of_records
from vit_ptq_bench.bench.report.bit_operations import BitOperations
from vit_ptq_bench.bench.report.classes import MARK
from vit_ptq_bench.bench.report.drop import Drop, drop_of
from vit_ptq_bench.bench.report.leaderboard import evidence_of, judged
from vit_ptq_bench.bench.report.tables import Loader, Place, Row, Table, seen, tables
from vit_ptq_bench.values import shown

COSTS = {
    "size": ("MB", "saved size"),
    "bit-operations": ("G", "bit operations of an image"),
    "seconds": ("s", "time to calibrate"),
}
"""What can be asked to be small -> its unit, and what it is."""

SAME = 0.01
"""Share by which costs may differ and count as the same: a hundredth of a file is scales, not weights."""


@dataclass(frozen=True)
class Candidate:
    """A row with what it loses and costs.

    Attributes:
        place: of its table.
        row: the method with its settings, all seeds.
        drop: against full precision.
        counted: bit operations, also those that other runs have counted.
    """

    place: Place
    row: Row
    drop: Drop
    counted: BitOperations = field(default_factory=BitOperations, repr=False, compare=False)

    @property
    def size(self) -> float | None:
        """MB of the saved model, mean over seeds."""
        return self.row.mean(lambda record: record.size_mb)

    def cost(self, by: str) -> float | None:
        """The size in MB, the bit operations of an image in 10^9, or the seconds that calibration takes."""
        if by == "bit-operations":
            operations = self.counted.mean(self.row)
            return None if operations is None else operations / 1e9
        return self.size if by == "size" else self.row.seconds

    @property
    def looked_up(self) -> bool:
        """Whether bit operations are those of another run, of the same model and bit table."""
        return self.counted.looked_up(self.row)

    @property
    def label(self) -> str:
        """The row's name, and where its calibration images come from if not from the training data."""
        return f"{self.row.label} on {self.place.source}" if self.place.source else self.row.label

    @property
    def name(self) -> str:
        """The label, with a mark where the row is of a class that does not compare with the others."""
        return f"{self.label} {MARK}" if self.row.classes else self.label

    def to_dict(self, allowed: float) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "label": self.row.label,
            "classes": list(self.row.classes),
            "method": self.row.record.spec.method.name,
            "bits": self.place.bits,
            "protocol": self.place.protocol,
            "scope": self.place.scope or None,
            "source": self.place.source or None,
            "value": self.row.value,
            "drop": self.drop.points,
            "interval": None if self.drop.high is None else [self.drop.low, self.drop.high],
            "within": self.drop.within(allowed),
            "size_mb": self.size,
            "bit_operations": self.counted.mean(self.row),
            "bit_operations_looked_up": self.looked_up,
            "seconds": self.row.seconds,
            "runs": [record.run_id for record in self.row.runs],
        }


@dataclass(frozen=True)
class Recommendation:
    """The answer, and what comes behind it.

    Attributes:
        task, model, metric: of whom.
        allowed: points that may be lost.
        by: what is small: a key of `COSTS`.
        reference: the row of full precision.
        found: the rows within ``allowed``, the best first.
        considered: how many rows were looked at.
        left_out: why others were not, a sentence each.
    """

    task: str
    model: str
    metric: str
    allowed: float
    by: str
    reference: Row
    found: tuple[Candidate, ...]
    considered: int
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "task": self.task,
            "model": self.model,
            "metric": self.metric,
            "max_drop": self.allowed,
            "by": self.by,
            "full_precision": {
                "value": self.reference.value,
                "size_mb": self.reference.mean(lambda record: record.size_mb),
                "runs": [record.run_id for record in self.reference.runs],
            },
            "chosen": self.found[0].to_dict(self.allowed),
            "others": [one.to_dict(self.allowed) for one in self.found[1:]],
            "considered": self.considered,
            "left_out": list(self.left_out),
        }


def recommend(
    folder: Path,
    model: str,
    allowed: float,
    *,
    task: str = "",
    protocol: str = "",
    by: str = "size",
) -> Recommendation:
    """Return the rows of a model that lose at most ``allowed`` points, the smallest first.

    Rows are those of the leaderboard: a mean over seeds; what its outcomes do not bear out has no figure.
    Costs within `SAME` of each other count as the same, and of those the smaller drop comes first. All rows
    are of the same weights and images: of several the kind with most evaluation images, then most rows.

    Raises:
        BenchError: no such records, several tasks, no full precision, or nothing loses so little.
    """
    store = Store(folder)
    records, _ = judged(store)
    task = _task_of(records, folder, model, task)
    own = [record for record in records if record.spec.task.name == task]
    evidence = evidence_of(store)
    of_model = [one for one in tables(own, evidence) if one.place.model == model]
    chosen, notes = _one_subject(_of_protocol(of_model, model, protocol))
    counted = BitOperations(own)
    rows = [row for row in _candidates(chosen, evidence, counted) if row.cost(by) is not None]
    lacking = sum(len(table.ranked) for table in chosen) - len(rows)
    if lacking:
        notes.append(f"{_count(lacking)} without a record of the {COSTS[by][1]}")
    found = ordered([row for row in rows if row.drop.points <= allowed], by)
    if not found:
        raise BenchError(_nothing(rows, model, allowed, folder))
    reference = chosen[0].reference
    assert reference is not None  # `_one_subject` takes no other tables
    return Recommendation(
        task, model, chosen[0].metric, allowed, by, reference, tuple(found), len(rows), tuple(notes)
    )


def ordered(candidates: Sequence[Candidate], by: str) -> list[Candidate]:
    """Return candidates by cost; of those alike to `SAME` by drop, then by time, as in the tables."""
    waiting = sorted(candidates, key=lambda one: (_known(one.cost(by)), one.label))
    result: list[Candidate] = []
    while waiting:
        most = (1 + SAME) * _known(waiting[0].cost(by))
        same = [one for one in waiting if _known(one.cost(by)) <= most]
        result += sorted(same, key=lambda one: (one.drop.points, one.row.time, one.label))
        waiting = waiting[len(same) :]
    return result


def _known(cost: float | None) -> float:
    return inf if cost is None else cost


def _task_of(records: Sequence[Record], folder: Path, model: str, task: str) -> str:
    """The task whose records of the model are meant."""
    if not records:
        raise BenchError(f"there are no records in {folder}: name a folder with --results")
    if not model:
        raise BenchError("name a model with --model")
    names = {record.spec.task.name for record in records}
    if task and task not in names:
        raise unknown("task", task, names)
    here = [record.spec for record in records if not task or record.spec.task.name == task]
    tasks = sorted({spec.task.name for spec in here if spec.model.name == model})
    if not tasks:
        raise BenchError(_no_model(model, folder, {spec.model.name for spec in here}))
    if len(tasks) > 1:
        raise BenchError(
            f"{', '.join(tasks)} have records of {shown(model)}: choose one of them with --task"
        )
    return tasks[0]


def _no_model(model: str, folder: Path, known: Collection[str]) -> str:
    """The sentence where a folder has no record of a model, with folders below or beside it that have."""
    near = dict.fromkeys([*folders_of_records(folder), *folders_of_records(folder.parent)])
    others = [
        str(one)
        for one in near
        if one != folder and any(record.spec.model.name == model for record in Store(one).records())
    ]
    sentence = f"no record in {folder} is of the model {shown(model)}"
    if others:
        return f"{sentence}; name a folder that has some: --results {' or '.join(others)}"
    return f"{sentence}, and none in folders near it{hint(model, known)}; --results names another folder"


def _of_protocol(found: Sequence[Table], model: str, protocol: str) -> list[Table]:
    """The tables with a result under a protocol, or under any."""
    done = [table for table in found if table.ranked]
    if not done:
        raise BenchError(f"no quantized run of {shown(model)} has ended well: there is no choice")
    if protocol and protocol not in {table.place.protocol for table in done}:
        raise unknown("protocol", protocol, {table.place.protocol for table in done})
    return [table for table in done if protocol in ("", table.place.protocol)]


def _one_subject(found: Sequence[Table]) -> tuple[list[Table], list[str]]:
    """Tables of the same weights and images beside a full-precision row, and what was left out."""
    subjects: dict[tuple[object, ...], list[Table]] = {}
    for table in found:
        if table.reference is not None and table.reference.runs:
            place = table.place
            key = (place.version, place.data, place.limit, place.weights)
            subjects.setdefault(key, []).append(table)
    if not subjects:
        place = found[0].place
        raise BenchError(
            f"no full-precision run of {place.model} on the images of the other records has ended well, so "
            f"that no drop is known: run the suite with the method fp32 into the same folder"
        )
    chosen = max(subjects.values(), key=_weight)
    other = _rows_of(found) - _rows_of(chosen)
    notes = (
        [f"{_count(other)} of other weights or images, or without full precision"] if other else []
    )
    return chosen, notes


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _weight(found: Sequence[Table]) -> tuple[int, int]:
    reference = found[0].reference
    images = 0 if reference is None else reference.record.n or 0
    return images, _rows_of(found)


def _rows_of(found: Sequence[Table]) -> int:
    return sum(len(table.ranked) for table in found)


def _candidates(
    found: Sequence[Table], evidence: Loader, counted: BitOperations
) -> list[Candidate]:
    candidates = []
    for table in found:
        assert table.reference is not None
        full = seen(table.reference, evidence)
        candidates += [
            Candidate(table.place, row, drop_of(full, seen(row, evidence)), counted)
            for row in table.ranked
        ]
    return candidates


def _nothing(rows: Sequence[Candidate], model: str, allowed: float, folder: Path) -> str:
    """The sentence where nothing loses so little, with the row that loses least."""
    if not rows:
        return (
            f"the records of {model} in {folder} do not tell what is asked for; choose another --by"
        )
    nearest = min(rows, key=lambda one: (one.drop.points, one.label))
    return (
        f"no row of {model} loses at most {points(allowed)}; the nearest is {nearest.label} at "
        f"{nearest.place.bits}, which loses {nearest.drop.points:.2f} (run {nearest.row.record.run_id})"
    )


def points(number: float) -> str:
    """Return a number of percentage points in words."""
    return f"{number:g} point" if number == 1 else f"{number:g} points"
