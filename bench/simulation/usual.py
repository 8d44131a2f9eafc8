"""Costs that the package brings along, for where no records are at hand.

``python -m vit_ptq_bench.bench.simulation.usual [FOLDER ...]`` makes the file again from records.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import REFERENCE_METHOD, RunSpec, canonical_json
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.simulation.costs import Cost, measured_costs, source_of
from vit_ptq_bench.methods.api.parameters import identity_of
from vit_ptq_bench.methods.quantization.calibration.sources import TRAINING

FILE = files("vit_ptq_bench.bench.simulation") / "usual_costs.json"

FOLDERS = ("results", "results/imagenet-sample")
"""Records of every method with its usual settings: of the bundled models, and of a real one."""

Peaks = Mapping[tuple[str, ...], float]
"""Most MB of a run, by kind of device, task, model and method."""


def usual_costs(tasks: Collection[str]) -> dict[str, Cost]:
    """Return what methods cost with their usual settings.

    Args:
        tasks: of the runs; where the file has none of them with a method, the median over its tasks counts.
    """
    own: dict[str, list[Cost]] = defaultdict(list)
    others: dict[str, list[Cost]] = defaultdict(list)
    for task, methods in _held()["costs"].items():
        for name, (passes, evaluation, rest) in methods.items():
            (own if task in tasks else others)[name].append(Cost(passes, evaluation, rest))
    return {name: _middle(costs) for name, costs in {**others, **own}.items()}


def usual_peaks() -> dict[tuple[str, ...], float]:
    """Return the memory that runs with usual settings took at most."""
    return {
        (kind, task, model, method): peak
        for kind, tasks in _held()["peaks_mb"].items()
        for task, models in tasks.items()
        for model, methods in models.items()
        for method, peak in methods.items()
    }


def usual_sizes() -> dict[tuple[str, str], float]:
    """Return the MB of models that are saved in full precision, by task and model."""
    held = _held()["full_precision_mb"]
    return {(task, model): size for task, models in held.items() for model, size in models.items()}


def table_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        records: those of methods count with their usual settings, and of a method that has none such, for
            example of an earlier version, all.
    """
    done = [one for one in records if one.ok and one.spec.task.name in registry.tasks()]
    kept = _usual([one for one in done if source_of(one.spec) == TRAINING])
    known: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    for record, cost in measured_costs(kept):
        known[record.spec.task.name, record.spec.method.name].append(cost)
    costs: dict[str, Any] = {}
    for (task, method), found in sorted(known.items()):
        middle = _middle(found)
        costs.setdefault(task, {})[method] = [round(number, 3) for number in middle[:3]]
    sizes: dict[str, Any] = {}
    peaks: dict[str, Any] = {}
    for record in sorted(kept, key=lambda one: _place(one.spec)):
        kind = str(record.environment.get("device")).partition(":")[0]
        task, model, method = _place(record.spec)
        methods = peaks.setdefault(kind, {}).setdefault(task, {}).setdefault(model, {})
        methods[method] = max(methods.get(method, 0.0), record.peak_memory_mb or 0.0)
        if method == REFERENCE_METHOD and record.size_mb:
            sizes.setdefault(task, {})[model] = record.size_mb
    return {"costs": costs, "full_precision_mb": sizes, "peaks_mb": peaks}


def main(folders: Sequence[str] = ()) -> int:
    """Write the file from the records of folders and return the exit status."""
    records = [one for folder in folders or FOLDERS for one in Store(Path(folder)).records()]
    table = table_of(records)
    if not table["costs"]:
        print(
            "there are no records with costs: call this from a clone of the project",
            file=sys.stderr,
        )
        return 2
    Path(str(FILE)).write_text(_one_method_a_line(table), encoding="utf-8")
    return 0


def _held() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return held


def _usual(records: Iterable[Record]) -> list[Record]:
    """The records of full precision and of usual settings."""
    by_method: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_method[record.spec.task.name, record.spec.method.name].append(record)
    kept = []
    for (_, name), all_of_it in by_method.items():
        if name == REFERENCE_METHOD:
            kept += all_of_it
        elif name in registry.methods():
            cls = registry.method_class(name)
            usual = canonical_json(identity_of(cls.create({}).parameters, cls.profiles))
            kept += [
                one for one in all_of_it if canonical_json(one.spec.method.settings) == usual
            ] or all_of_it
    return kept


def _place(spec: RunSpec) -> tuple[str, str, str]:
    return spec.task.name, spec.model.name, spec.method.name


def _middle(costs: Sequence[Cost]) -> Cost:
    passes, evaluation, rest = (
        median(numbers) for numbers in zip(*(cost[:3] for cost in costs), strict=True)
    )
    return Cost(passes, evaluation, rest)


def _one_method_a_line(table: Mapping[str, Any]) -> str:
    """JSON in which another cost of a method is a change of one line."""
    text = json.dumps(table, indent=1, sort_keys=True)
    numbers = re.compile(r"\[[-\s0-9.,e]*\]")
    return numbers.sub(lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
