"""Costs of methods in units of a full-precision pass, from the seconds of records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import REFERENCE_METHOD, MethodSpec, RunSpec, canonical_json
from vit_ptq_bench.methods.quantization.calibration.sources import TRAINING

Key = tuple[object, ...]

Place = tuple[object, ...]
"""A model of a task on a machine."""


class Cost(NamedTuple):
    """What a run costs beside full precision.

    Attributes:
        passes: calibration in F: one full-precision pass over the calibration images.
        evaluation: seconds per evaluation image beside full precision's.
        rest: seconds for all else: to load, to save.
        narrow: whether runs of this method with these settings are known; else of this method, or of any.
    """

    passes: float
    evaluation: float
    rest: float
    narrow: bool = True


class Costs:
    """Costs of methods, and the seconds per image in full precision that they were measured beside.

    Only runs count that have the full-precision run of their model beside them, of the same machine with as
    many threads. Of runs of like kind the median counts.

    Args:
        records: of a folder, or of several.
        usual: costs by method that count where the records tell of none.

    Attributes:
        usual: whether costs are those of ``usual``.

    Raises:
        BenchError: no run has its full-precision run beside it, and there are no others.
    """

    def __init__(self, records: Sequence[Record], usual: Mapping[str, Cost] | None = None) -> None:
        self._seconds = _full_precision(records)
        self._known: dict[Key, list[Cost]] = defaultdict(list)
        for record, cost in measured_costs(records):
            self._learn(record.spec, cost)
        self.usual = not self._known
        if self.usual:
            for method, cost in (usual or {}).items():
                self._known[(method,)].append(cost)
                self._known[()].append(cost)
        if not self._known:
            raise BenchError(
                "no record of a method has the full-precision run of its model beside it"
            )

    def seconds_per_image(self) -> dict[tuple[str, str], float]:
        """Return the seconds of an image in full precision by task and model, the median over machines."""
        by_model: dict[tuple[str, str], list[float]] = defaultdict(list)
        for (task, model, *_), seconds in self._seconds.items():
            by_model[str(task), str(model)].append(seconds)
        return {key: median(values) for key, values in by_model.items()}

    def of(self, method: MethodSpec, source: str, images: int, bits: str) -> Cost:
        """Return what a run costs, as the runs most like it did.

        Args:
            method: with its settings.
            source: name of that of the calibration images.
            images: how many.
            bits: like ``W4A4``.
        """
        settings = canonical_json(method.settings)
        for narrow, key in _keys(method.name, source, settings, images, bits):
            if known := self._known.get(key):
                return Cost(
                    median(one.passes for one in known),
                    median(one.evaluation for one in known),
                    median(one.rest for one in known),
                    narrow or (self.usual and key != ()),
                )
        raise AssertionError("the last key is that of any run")

    def _learn(self, spec: RunSpec, cost: Cost) -> None:
        images, settings = spec.calibration.images, canonical_json(spec.method.settings)
        for _, key in _keys(spec.method.name, source_of(spec), settings, images, spec.bits):
            self._known[key].append(cost)


def measured_costs(records: Sequence[Record]) -> Iterator[tuple[Record, Cost]]:
    """Yield the records that have the full-precision run of their model beside them, with their cost."""
    beside = _full_precision(records)
    for record in records:
        images = record.spec.calibration.images
        seconds = beside.get(_place(record), 0.0)
        if _is_timed(record) and seconds > 0 and images:
            calibrate, evaluate = _spent(record, "calibrate"), _spent(record, "evaluate")
            rest = _spent(record, "total") - _spent(record, "shared") - calibrate - evaluate
            passes = calibrate / seconds / images
            yield record, Cost(passes, _per_image(record) / seconds, max(0.0, rest))


def _full_precision(records: Sequence[Record]) -> dict[Place, float]:
    """Seconds of an image."""
    return {
        _place(record): _per_image(record)
        for record in records
        if record.spec.method.name == REFERENCE_METHOD and _is_timed(record)
    }


def source_of(spec: RunSpec) -> str:
    """Return the name of the source of a run's calibration images."""
    return spec.calibration.source.name if spec.calibration.source else TRAINING


def _keys(
    method: str, source: str, settings: str, images: int, bits: str
) -> Iterator[tuple[bool, Key]]:
    """Kinds that a run belongs to, the narrowest first, and whether it is this method with these settings."""
    yield True, (method, source, settings, images, bits)
    yield True, (method, source, settings, images)
    yield True, (method, source, settings)
    yield False, (method, source)
    yield False, (method,)
    yield False, ()


def _place(record: Record) -> Place:
    spec, environment = record.spec, record.environment
    machine = (environment.get("device_name"), environment.get("threads"))
    return (spec.task.name, spec.model.name, *machine)


def _per_image(record: Record) -> float:
    return _spent(record, "evaluate") / (record.n or 1)


def _spent(record: Record, phase: str) -> float:
    return record.seconds.get(phase) or 0.0


def _is_timed(record: Record) -> bool:
    """Whether a record is of a finished run and tells all that counts here: old ones may not."""
    if not (record.ok and record.n):
        return False
    phases = ["evaluate", "total"]
    if record.spec.calibration.images:
        phases.append("calibrate")
    return all(record.seconds.get(phase) is not None for phase in phases)
