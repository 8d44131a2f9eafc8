"""Factorials among records: what each part gives alone and together, as markdown and CSV."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pandas as pd

from vit_ptq_bench.bench.records.combination import Level, combination_label, levels_of
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.bench.records.spec import CalibrationSpec
from vit_ptq_bench.bench.report.effects import (
    Corner,
    Estimate,
    Result,
    corners,
    estimate,
    gain_alone,
    gain_last,
    interaction,
    main_effect,
    only,
    without,
)
from vit_ptq_bench.bench.report.frame import Loader
from vit_ptq_bench.bench.report.text import code, plain, table

LEGEND = """\
Of each factor the runs have two levels, without a part and with it, in all
combinations. *Alone*: with this part and none of the others, and what it gains
on none; *rest*: with all parts but this one, and what it gains on top of them.
A *main effect* is what a part gains on average over all combinations of the
others; an *interaction* `a x b` is how much more `a` gains with `b` than
without it (and `b` with `a`), on average over the rest: below zero they do the
same thing in part. All in percent or points of the first metric. Intervals are
95 %, paired over the evaluation images; with several seeds, over images and
seeds. One in twenty leaves zero out where there is nothing. `?`: a level that
no record has."""

SHOWN = 3
"""Missing combinations that are named."""

UNKNOWN = "?"
"""In the place of a level that no record has."""

Place = tuple[object, ...]
"""Task, version, data, limit, protocol, scope, method, version, calibration images, factors."""


@dataclass
class Factorial:
    """One factorial on one model at one bit width.

    Attributes:
        place, model, weights, bits: what its runs share.
        factors: their names, in order.
        names: of the levels of each factor, without and with the part, that records have.
        metric: the first metric.
        full: of the full-precision model, in percent; None: not known.
        cells: results by combination and seed.
        failures: combination and seed of runs without a result, with their status.
        twice: labels that several runs of one seed have.
    """

    place: Place
    model: str
    weights: str
    bits: str
    factors: tuple[str, ...]
    names: tuple[tuple[set[str], set[str]], ...]
    metric: str = ""
    full: float | None = None
    cells: dict[Corner, dict[int, Result]] = field(default_factory=lambda: defaultdict(dict))
    failures: dict[tuple[Corner, int], str] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)

    def add(self, record: Record, levels: tuple[Level, ...], outcomes: Loader) -> None:
        """Take one of its runs."""
        corner, seed = tuple(level.added for level in levels), record.spec.seed
        for level, names in zip(levels, self.names, strict=True):
            names[level.added].add(level.name)
        if seed in self.cells.get(corner, ()) or (corner, seed) in self.failures:
            self.twice.add(record.variant or "")
        if record.value is None:
            self.failures[corner, seed] = record.status
            return
        self.metric = record.primary_metric or ""
        paired = record.primary_metric == record.outcomes_metric
        self.cells[corner][seed] = Result(record.value, outcomes(record) if paired else None)

    @property
    def seeds(self) -> list[int]:
        """All seeds that some run has."""
        with_results = {seed for runs in self.cells.values() for seed in runs}
        return sorted(with_results | {seed for _, seed in self.failures})

    def problem(self) -> str | None:
        """Return why no figure can be made at all; None if one can."""
        if self.twice:
            return (
                f"`{min(self.twice)}` stands for several runs of one seed, which differ in other settings; "
                "keep those of one factorial in a folder"
            )
        for factor, names in zip(self.factors, self.names, strict=True):
            for level in names:
                if len(level) > 1:
                    return (
                        f"factor `{factor}` has one level under several names "
                        f"({', '.join(sorted(level))}); keep the runs of one factorial in a folder"
                    )
        return None

    def missing(self) -> list[tuple[int, list[Corner]]]:
        """Return, by seed, the combinations that have no result."""
        pairs = [
            (seed, [c for c in corners(len(self.factors)) if seed not in self.cells.get(c, ())])
            for seed in self.seeds
        ]
        return [(seed, absent) for seed, absent in pairs if absent]

    def label(self, corner: Corner) -> str:
        """Return the label of a combination."""
        return combination_label(
            Level(factor, min(names[added], default=UNKNOWN), added)
            for factor, names, added in zip(self.factors, self.names, corner, strict=True)
        )

    def value(self, corner: Corner) -> Estimate | None:
        """Return a combination's metric, the mean over its seeds, in percent."""
        return estimate({corner: 1.0}, self.cells)

    def effects(self) -> Iterator[tuple[str, str, Estimate | None]]:
        """Yield everything there is to say: kind, part or parts, figure."""
        count = len(self.factors)
        yield "none", "", self.value(only(count))
        yield "all", "", self.value(only(count, *range(count)))
        for place, name in enumerate(self.factors):
            yield "alone", name, self.value(only(count, place))
            yield "gain alone", name, estimate(gain_alone(count, place), self.cells)
            yield "rest", name, self.value(without(count, place))
            yield "gain on the rest", name, estimate(gain_last(count, place), self.cells)
        for place, name in enumerate(self.factors):
            yield "main effect", name, estimate(main_effect(count, place), self.cells)
        for (i, first), (j, second) in combinations(enumerate(self.factors), 2):
            found = estimate(interaction(count, i, j), self.cells)
            yield "interaction", f"{first} x {second}", found


def factorials(records: Sequence[Record], outcomes: Loader) -> list[Factorial]:
    """Return the factorials that labels of records tell, in a fixed order."""
    found: dict[tuple[object, ...], Factorial] = {}
    for record in records:
        levels = levels_of(record.variant)
        if levels is None:
            continue
        spec = record.spec
        factors = tuple(level.factor for level in levels)
        place = (
            *(spec.task.name, spec.task.version, spec.task.data or "", spec.task.limit),
            *(spec.protocol, spec.scope or "", spec.method.name, spec.method.version),
            *(_images(spec.calibration), factors),
        )
        model, weights = spec.model.name, spec.model.weights or ""
        names = tuple((set[str](), set[str]()) for _ in factors)
        new = Factorial(place, model, weights, spec.bits, factors, names)
        found.setdefault((place, model, weights, spec.bits), new).add(record, levels, outcomes)
    full = _references(records)
    for one in found.values():
        one.full = full.get((*one.place[:4], one.model, one.weights))
    return [found[key] for key in sorted(found, key=repr)]


def _images(calibration: CalibrationSpec) -> int | str:
    """How many calibration images; with their source, where that is not the training data."""
    if calibration.source is None:
        return calibration.images
    return f"{calibration.images} ({calibration.source.title})"


def _references(records: Sequence[Record]) -> dict[tuple[object, ...], float]:
    """Full-precision figures, by task, version, data, limit, model and weights."""
    return {
        (
            *(r.spec.task.name, r.spec.task.version, r.spec.task.data or "", r.spec.task.limit),
            *(r.spec.model.name, r.spec.model.weights or ""),
        ): r.value
        for r in records
        if r.fidelity == REFERENCE_FIDELITY and r.value is not None
    }


def sections(found: Sequence[Factorial]) -> Iterator[str]:
    """Yield the paragraphs of markdown; none without factorials."""
    by_place: dict[Place, list[Factorial]] = defaultdict(list)
    for one in found:
        by_place[one.place].append(one)
    for number, (place, group) in enumerate(by_place.items()):
        task, version, _, limit, protocol, scope, method, own_version, images, factors = place
        part = "" if limit is None else f", {limit} images of the evaluation set"
        how = code(str(protocol)) + (f", scope {code(str(scope))}" if scope else "")
        name, of_task = plain(str(method)), plain(str(task))
        yield f"## Parts of {name}: {of_task} (version {version}{part}), protocol {how}"
        if number == 0:
            yield LEGEND
        yield f"{name} (version {own_version}), {images} calibration images."
        assert isinstance(factors, tuple)
        yield _levels(factors, group)
        for one in group:
            yield f"### Parts of {name}: {plain(one.model)}, {plain(one.bits)}, {how}"
            yield from _paragraphs(one)


def _levels(factors: tuple[str, ...], group: Sequence[Factorial]) -> str:
    """The names of the levels, in all factorials of a group."""
    rows = [
        [
            plain(factor),
            *(_one_of(set().union(*(f.names[place][i] for f in group))) for i in (0, 1)),
        ]
        for place, factor in enumerate(factors)
    ]
    return table(rows, ["part", "without", "with"])


def _one_of(names: set[str]) -> str:
    return plain("/".join(sorted(names))) or UNKNOWN


def _paragraphs(one: Factorial) -> Iterator[str]:
    problem = one.problem()
    if problem is not None:
        yield f"No figures: {problem}."
        return
    found = {(kind, name): figure for kind, name, figure in one.effects()}
    yield _summary(one, found)
    missing = one.missing()
    if missing:
        yield "\n".join(_missing(one, seed, absent) for seed, absent in missing)
    columns = ("alone", "gain alone", "rest", "gain on the rest")
    rows = [
        [plain(name), *(_shown(kind, found[kind, name]) for kind in columns)]
        for name in one.factors
    ]
    yield table(rows, ["part", "alone", "gain [95 %]", "rest", "gain [95 %]"])
    kinds = ("main effect", "interaction")
    together = [(name, kind, figure) for (kind, name), figure in found.items() if kind in kinds]
    if all(figure is None for _, _, figure in together):
        yield "No main effects or interactions: they need all combinations with one seed."
        return
    rows = [[plain(name), kind, _shown(kind, figure)] for name, kind, figure in together]
    yield table(rows, ["parts", "", f"points of {plain(one.metric or '')} [95 %]"])


def _summary(one: Factorial, found: Mapping[tuple[str, str], Estimate | None]) -> str:
    seeds = ", ".join(map(str, one.seeds))
    sizes = {
        len(result.outcomes)
        for runs in one.cells.values()
        for result in runs.values()
        if result.outcomes is not None
    }
    full = "not run" if one.full is None else f"{one.full:.1f}"
    lines = [
        f"{plain(one.metric or 'No result')}: full precision {full}, without any part "
        f"{_shown('none', found['none', ''])}, with all {_shown('all', found['all', ''])};",
        f"seed{'s' if len(one.seeds) > 1 else ''} {seeds}"
        + (f", {sizes.pop()} images." if len(sizes) == 1 else ", no outcomes to pair."),
    ]
    return "\n".join(lines)


def _missing(one: Factorial, seed: int, absent: Sequence[Corner]) -> str:
    """What is missing of one seed, in lines of a list."""
    why = [one.failures.get((corner, seed), "not run") for corner in absent]
    counts = ", ".join(f"{why.count(reason)} {reason}" for reason in sorted(set(why)))
    total = 2 ** len(one.factors)
    lines = [f"- Seed {seed}: {len(absent)} of {total} combinations have no result ({counts}):"]
    lines += [f"  - {code(one.label(corner))}" for corner in absent[:SHOWN]]
    if len(absent) > SHOWN:
        lines.append(f"  - and {len(absent) - SHOWN} more")
    return "\n".join(lines)


def _shown(kind: str, figure: Estimate | None) -> str:
    """A figure with one decimal; with its interval unless it is a combination's own."""
    if figure is None:
        return "not run"
    if kind in ("none", "all", "alone", "rest"):
        return f"{figure.points:.1f}"
    interval = (
        f" [{_signed(figure.low)}, {_signed(figure.high)}]"
        if figure.low is not None and figure.high is not None
        else ""
    )
    return _signed(figure.points) + interval


def _signed(points: float) -> str:
    return f"{round(points, 1) + 0.0:+.1f}"  # no minus before a zero


COLUMNS = (
    *("task", "task_version", "data", "limit", "protocol", "scope", "method", "method_version"),
    *("calibration_images", "model", "weights", "bits", "metric", "kind", "parts"),
    *("value", "low", "high", "seeds"),
)


def to_csv(found: Sequence[Factorial]) -> str:
    """Return one row per figure of the tables, in percent or points; figures that are not there are empty."""
    rows = [
        [
            *(*one.place[:-1], one.model, one.weights, one.bits, one.metric, kind, parts),
            *([None] * 3 if figure is None else map(_rounded, (figure.points, figure.low, figure.high))),
            "" if figure is None else " ".join(map(str, figure.seeds)),
        ]
        for one in found
        if one.problem() is None
        for kind, parts, figure in one.effects()
    ]  # fmt: skip
    buffer = io.StringIO()
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    frame.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _rounded(value: float | None) -> float | None:
    """As many digits as every machine agrees on."""
    return None if value is None else round(value, 4) + 0.0
