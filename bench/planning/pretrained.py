"""Published weights that a sweep would have to fetch first, because they are not on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.tasks import TaskOptions


def to_fetch(runs: Sequence[Run], options: Mapping[str, TaskOptions]) -> Iterator[str]:
    """Yield a sentence for each model whose weights the runs would fetch; nothing is fetched for it.

    Args:
        runs: those that are due.
        options: of each task, by its name.
    """
    models = dict.fromkeys((run.spec.task.name, run.spec.model.name) for run in runs)
    tasks = {name: registry.make_task(name, options[name]) for name, _ in models}
    for name, model in models:
        place = ask(tasks[name], "weights_to_fetch", model)
        if place is not None:
            yield (
                f"weights: those of {model} are not on this machine, its first run fetches them from {place} "
                "(and fails without a network); a file is given with --checkpoint"
            )
