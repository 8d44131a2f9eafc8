"""The tables that a folder's records make, before anything is drawn: what is in which row, and its rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd

from vit_ptq_bench.bench.records.outcomes import Outcomes, Replicates
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.bench.report import intervals
from vit_ptq_bench.bench.report.classes import MARK, classes_of
from vit_ptq_bench.bench.report.frame import GROUP, SOURCE, labels, to_frame
from vit_ptq_bench.bench.report.standings import Seen, Standing, standings
from vit_ptq_bench.methods.quantization.calibration.sources import PSAQ

SECTION = [*GROUP[:-2], SOURCE]
"""What the tables under one title share."""


class Evidence(NamedTuple):
    """What lies beside a record; see `Store`.

    Attributes:
        outcomes: per image, bool [n]; None: gone, or damaged.
        replicates: the first metric on drawn image sets, [R]; None: the record has none.
    """

    outcomes: Outcomes | None = None
    replicates: Replicates | None = None


Loader = Callable[[Record], Evidence]


def images_of(source: str) -> str:
    """Return a source of calibration images for a title, behind a comma; empty for the training data."""
    if not source:
        return ""
    none = " (0 real images)" if source.startswith(PSAQ) else ""
    return f", calibration on {source}{none}"


class Place(NamedTuple):
    """What the rows of one table share.

    Attributes:
        task, version: of the task.
        data: identity of the data.
        limit: images of the evaluation set; None: all.
        protocol: ``equal`` or ``authors``.
        scope: what of the model is quantized; empty: it is always the whole.
        model, weights: of the model.
        bits: such as ``W4A4``.
        source: where calibration images come from; empty: from the training data.
    """

    task: str
    version: int
    data: str
    limit: int | None
    protocol: str
    scope: str
    model: str
    weights: str
    bits: str
    source: str = ""

    @property
    def images(self) -> str:
        """The source in a title, behind a comma; empty for the training data."""
        return images_of(self.source)

    @property
    def shared_out(self) -> bool:
        """Whether bits differ from operation to operation: `Record.standing_bits`."""
        return ":" in self.bits


@dataclass(frozen=True)
class Row:
    """One method with its settings in one table.

    Attributes:
        label: its name; the same in all tables of one task and protocol.
        runs: the runs that are ok, by seed.
        failures: those that are not.
        standing: its place; None: no run is ok.
        interval: 95 % interval of `value`, over images and seeds; None: it is not known.
    """

    label: str
    runs: tuple[Record, ...] = ()
    failures: tuple[Record, ...] = ()
    standing: Standing | None = None
    interval: intervals.Interval | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Why it does not compare with the other rows of its table; empty: it does."""
        return classes_of(self.record)

    @property
    def name(self) -> str:
        """The label, with a mark where it does not compare."""
        return f"{self.label} {MARK}" if self.classes else self.label

    @property
    def record(self) -> Record:
        """The run that speaks for all: of the lowest seed that is ok, else the first that is not."""
        return (self.runs or self.failures)[0]

    @property
    def value(self) -> float | None:
        """The first metric in percent, mean over seeds; None where no run is ok."""
        return self.mean(lambda record: record.value)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the first metric between seeds; None with fewer than two."""
        values = [record.value for record in self.runs if record.value is not None]
        return stdev(values) if len(values) > 1 else None

    @property
    def seconds(self) -> float | None:
        """What calibration takes, mean over seeds."""
        return self.mean(lambda record: record.seconds.get("calibrate"))

    @property
    def time(self) -> float:
        """`seconds` to order by: infinite where they are not known."""
        return math.inf if self.seconds is None else self.seconds

    def metric(self, name: str) -> float | None:
        """A metric in percent, mean over the seeds that have it."""
        return self.mean(lambda record: record.metrics.get(name))

    @property
    def stored(self) -> str:
        """The bits of weights and activations as stored on average, like ``4.00/3.98``; mean over seeds."""
        means = [self.mean(lambda one: one.stored_bits.get("weight"))]
        means.append(self.mean(lambda one: one.stored_bits.get("activation")))
        return "/".join("" if mean is None else f"{mean:.2f}" for mean in means).strip("/")

    def mean(self, of: Callable[[Record], float | None]) -> float | None:
        """The mean over the runs that are ok and have it."""
        found = [value for value in map(of, self.runs) if value is not None]
        return fmean(found) if found else None


@dataclass(frozen=True)
class Table:
    """All rows of one model at one bit width under one protocol.

    Attributes:
        place: what they share.
        reference: the full-precision model; None: it has not run.
        rows: those with a result, best first, then those without.
        missing: labels that the task and protocol have elsewhere, but not here.
    """

    place: Place
    reference: Row | None
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows with a result, best first."""
        return tuple(row for row in self.rows if row.standing is not None)

    @property
    def metric(self) -> str:
        """Name of the metric that rows are ranked by; empty where nothing has a result."""
        return next((row.record.primary_metric or "" for row in self._with_result()), "")

    @property
    def titles(self) -> tuple[tuple[str, str], ...]:
        """(metric, title) of the metrics beside the first."""
        return next((row.record.metric_titles for row in self._with_result()), ())

    def _with_result(self) -> Iterator[Row]:
        yield from self.ranked
        if self.reference is not None and self.reference.runs:
            yield self.reference


def by_section(found: Sequence[Table]) -> list[list[Table]]:
    """Return the tables of each task, evaluation set, protocol, scope and source together, as they come."""
    sections: dict[tuple[object, ...], list[Table]] = {}
    for table in found:
        sections.setdefault((*table.place[:6], table.place.source), []).append(table)
    return list(sections.values())


def tables(records: Sequence[Record], evidence: Loader) -> list[Table]:
    """Return the tables of records, ordered by task, protocol, scope, source, model and bit width.

    Args:
        records: in any order.
        evidence: gives what lies beside a record.
    """
    if not records:
        return []
    frame = to_frame(records).reset_index(drop=True)
    by_id = {record.run_id: record for record in records}
    is_reference = frame["fidelity"] == REFERENCE_FIDELITY
    references = _references(frame[is_reference], by_id, evidence)
    found: list[Table] = []
    for _, section in frame[~is_reference].groupby(SECTION, dropna=False, sort=True):
        section = section.assign(label=labels(section))
        everyone = section.groupby(section["bits"].map(_sharing))["label"].agg(set)
        for key, part in section.groupby([*GROUP, "bits", SOURCE], dropna=False, sort=True):
            rows = _rows(part, by_id, evidence)
            here = {row.label for row in rows}
            place = _place(key)
            missing = tuple(sorted(everyone[_sharing(place.bits)] - here))
            found.append(Table(place, references.get(_model_of(place)), rows, missing))
    return found


def _sharing(bits: str) -> str:
    """How a bit width is meant: everywhere the same, or on average; who runs the one need not the other."""
    return bits.partition(":")[2]


def _place(key: Any) -> Place:
    place = Place(*_values(key))
    return place._replace(version=int(place.version), limit=_whole(place.limit))


def _values(key: Any) -> list[Any]:
    """The values of a group's key, None where there is none."""
    return [None if pd.isna(value) else value for value in key]


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _model_of(place: Place) -> tuple[object, ...]:
    return (*place[:4], place.model, place.weights)


def _references(
    frame: pd.DataFrame, by_id: Mapping[str, Record], evidence: Loader
) -> dict[tuple[object, ...], Row]:
    """The full-precision rows by task, version, data, limit, model and weights."""
    columns = [*GROUP[:4], "model", "weights"]
    found = {}
    for key, part in frame.groupby(columns, dropna=False, sort=True):
        task, version, data, limit, *model = _values(key)
        label = str(part.iloc[0]["method"])
        row = _row(label, part, by_id)
        row = replace(row, interval=seen(row, evidence).interval)
        found[(task, int(version), data, _whole(limit), *model)] = row
    return found


def _row(label: str, part: pd.DataFrame, by_id: Mapping[str, Record]) -> Row:
    runs = sorted((by_id[run] for run in part["run_id"]), key=lambda r: (r.spec.seed, r.run_id))
    return Row(
        label,
        tuple(run for run in runs if run.value is not None),
        tuple(run for run in runs if run.value is None),
    )


def _rows(part: pd.DataFrame, by_id: Mapping[str, Record], evidence: Loader) -> tuple[Row, ...]:
    """The rows of one table, best first; of equal figures the one that calibrates in less time."""
    rows = [_row(str(label), own, by_id) for label, own in part.groupby("label", sort=True)]
    done = sorted(
        (row for row in rows if row.runs),
        key=lambda row: (-(row.value or 0.0), row.time, row.label),
    )
    known = [seen(row, evidence) for row in done]
    ranked = [
        replace(row, standing=place, interval=one.interval)
        for row, place, one in zip(done, standings(known), known, strict=True)
    ]
    return (*ranked, *(row for row in rows if not row.runs))


def seen(row: Row, evidence: Loader) -> Seen:
    """Return what tests know of a row: outcomes where the first metric is their share, else replicates."""
    found = [evidence(run) for run in row.runs]
    is_share = all(run.outcomes_metric == run.primary_metric for run in row.runs)
    outcomes = _complete([one.outcomes for one in found]) if is_share else None
    replicates = None if is_share else _complete([one.replicates for one in found])
    known = Seen(row.value or 0.0, outcomes, replicates, compares=not row.classes)
    return replace(known, interval=_interval(row, known))


def _interval(row: Row, known: Seen) -> intervals.Interval | None:
    """The interval of one run as its record has it; of several that of their mean, by what is known."""
    if len(row.runs) < 2:
        return next((_own_interval(run) for run in row.runs), None)
    found = intervals.of_outcomes(known.outcomes or ())
    found = found or intervals.of_replicates(known.value, known.replicates or ())
    if found is not None:
        return found
    errors = [run.standard_errors.get(run.primary_metric or "") for run in row.runs]
    return intervals.of_errors([run.value or 0.0 for run in row.runs], errors)


def _own_interval(run: Record) -> intervals.Interval | None:
    low, high = run.intervals.get(run.primary_metric or "", (None, None))
    return None if low is None or high is None else (low, high)


def _complete(arrays: Sequence[Any]) -> Sequence[Any] | None:
    return None if any(array is None for array in arrays) else arrays
