"""Disk that saved models would take: parameters times bits, or what models like them took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.simulation.usual import usual_sizes
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitWidth
from vit_ptq_bench.tasks import TaskOptions

MB = 10**6

FULL_BITS = str(BitWidth(FLOAT, FLOAT))

Kind = tuple[str, str, str, str | None]
"""Task, model, bits and scope."""


def saved_mb(
    runs: Sequence[Run], tasks: Mapping[str, TaskOptions], records: Sequence[Record]
) -> tuple[float, int]:
    """Return about how many MB the saved models of runs take, and of how many runs that is not known.

    Args:
        runs: whose models are kept.
        tasks: their options, by the name of the task.
        records: with the sizes of such models.
    """
    found: dict[Kind, list[float]] = defaultdict(list)
    for record in records:
        if record.size_mb:
            found[_kind(record)].append(record.size_mb)
    known = {kind: median(sizes) for kind, sizes in found.items()}
    full: dict[tuple[str, str], float | None] = dict(usual_sizes())
    total, unknown = 0.0, 0
    for run in runs:
        task, model, bits, _ = kind = _kind(run)
        if kind in known:
            total += known[kind]
            continue
        place = task, model
        if (size := known.get((task, model, FULL_BITS, None))) is not None:
            full[place] = size
        elif place not in full:
            full[place] = _counted(task, model, tasks[task])
        whole = full[place]
        if whole is None:
            unknown += 1
        elif run.spec.scope:  # the rest of the model stays as it is
            total += whole
        else:
            total += whole * BitWidth.parse(bits).weight / FLOAT
    return total, unknown


def _counted(name: str, model: str, options: TaskOptions) -> float | None:
    """MB of a model's parameters in full precision; None: its task does not build it without weights."""
    try:
        skeleton = ask(registry.make_task(name, options), "skeleton", model)
    except UserError:
        return None
    return float(sum(4 * one.numel() for one in skeleton.parameters()) / MB)


def _kind(one: Run | Record) -> Kind:
    spec = one.spec
    return spec.task.name, spec.model.name, spec.bits, spec.scope
