"""Figures that papers report, and which of our rows they can be held against."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from vit_ptq_bench.bench.report.tables import Row, Table
from vit_ptq_bench.methods.quantization.bits import MIXED

FOLDER = files("vit_ptq_bench.bench") / "published"

RELEASED = "-released"
"""Ending of methods that do what their authors' code does: they have the same paper."""

METRICS = {"top1": "top1", "AP_box": "box_ap", "AP_mask": "mask_ap"}
"""Published name of a metric -> ours."""

EVALUATION_SETS = {("imagenet", 50_000): "ImageNet-1k val", ("coco", 5_000): "COCO val2017"}
"""(task, images judged) -> the data set of published figures. Parts of it are another set."""

FULL_PRECISION = "W32A32"

SAME = 1.0
"""Points that full precision may be off what papers print of a model; else it is another set or model."""


@dataclass(frozen=True)
class Published:
    """One figure as a paper or an official README prints it.

    Attributes:
        written: the method as the source writes it.
        method: the one of this project that does the same, without ``-released``; empty: there is none.
        known_as: what all sources' names of the same method have in common: ours, or one of these names.
        classes: of `classes.CLASSES`; empty: it compares.
        model: the one of this project; empty: it has none.
        short: the model as the source writes it.
        dataset: such as ``ImageNet-1k val``.
        bits: such as ``W4A4``; ``W32A32`` is full precision.
        metric: of `METRICS`, our name; empty: another one.
        value: in percent.
        source: where it stands.
    """

    written: str
    method: str
    known_as: str
    classes: tuple[str, ...]
    model: str
    short: str
    dataset: str
    bits: str
    metric: str
    value: float
    source: str


@cache
def figures() -> tuple[Published, ...]:
    """Return all figures, ordered by task, model, bits, metric and method."""
    methods = {row["published"]: row for row in _rows("methods.csv")}
    models = {row["published"]: row["model"] for row in _rows("models.csv")}
    return tuple(_figure(row, methods, models) for row in _rows("published.csv"))


def _figure(
    row: Mapping[str, str], methods: Mapping[str, Mapping[str, str]], models: Mapping[str, str]
) -> Published:
    method = methods[row["method"]]
    return Published(
        written=row["method"],
        method=method["method"],
        known_as=method["method"] or method["same_as"] or row["method"],
        classes=tuple(filter(None, method["classes"].split(";"))),
        model=models.get(row["model"], ""),
        short=row["model"],
        dataset=row["dataset"],
        bits=f"W{row['w_bits']}A{row['a_bits']}",
        metric=METRICS.get(row["metric"], ""),
        value=float(row["value"]),
        source=row["source"],
    )


def _rows(name: str) -> list[dict[str, str]]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def dataset_of(table: Table) -> str:
    """Return the published data set that the rows of a table were judged on; empty: it is none.

    A set is known by the number of its images, and by the full-precision figure: other sets may have as many.
    """
    if table.place.limit is not None or table.place.source:  # papers calibrate on real images
        return ""
    counts = {run.n for row in table.ranked for run in row.runs}
    if len(counts) != 1:
        return ""
    name = EVALUATION_SETS.get((table.place.task, counts.pop() or 0), "")
    return name if _has_known_reference(table, name) else ""


def _has_known_reference(table: Table, dataset: str) -> bool:
    """Whether full precision reaches what papers print of it, as far as both are known."""
    found = table.reference.value if table.reference is not None else None
    wanted = (model_of(table), dataset, FULL_PRECISION, table.metric)
    known = [o.value for o in figures() if (o.model, o.dataset, o.bits, o.metric) == wanted]
    return found is None or not known or min(abs(found - value) for value in known) <= SAME


def model_of(table: Table) -> str:
    """Return the model's name without the tag of its weights."""
    return table.place.model.partition(".")[0]


def of_row(table: Table, row: Row) -> tuple[Published, ...]:
    """Return what is published of a row's method on the same model, data and bits."""
    dataset = dataset_of(table)
    if not dataset:
        return ()
    record = row.record
    name = record.spec.method.name.removesuffix(RELEASED)
    bits = record.spec.bits.removesuffix(MIXED)
    wanted = (name, model_of(table), dataset, bits, table.metric)
    return tuple(
        one
        for one in figures()
        if (one.method, one.model, one.dataset, one.bits, one.metric) == wanted
    )


def sentence(found: Sequence[Published]) -> str:
    """Return published figures with their sources in words, with why one does not compare; or nothing."""
    if not found:
        return ""
    texts = []
    for one in found:
        why = f" (does not compare: {', '.join(one.classes)})" if one.classes else ""
        texts.append(f"{one.value:.2f} as {one.written}{why}, {one.source}")
    return "published: " + "; ".join(texts)


def extent(found: Sequence[Published]) -> tuple[float, float] | None:
    """Return the least and the greatest value of those that compare; None where none does."""
    values = [one.value for one in found if not one.classes]
    return (min(values), max(values)) if values else None
