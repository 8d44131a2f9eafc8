"""Whether a checkpoint can be loaded, tried once and kept: a plan asks before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.kept import kept_text, recipe_key

SOURCES = tuple(
    f"vit_ptq_bench.tasks.{name}"
    for name in ("storage.checkpoints", "storage.state_dicts", "storage.weights")
)

if TYPE_CHECKING:
    from vit_ptq_bench.tasks.api.task import Task

FITS, REFUSED = "fits", "refused"


def loading_problem(load: Callable[[], object], *facts: str) -> str | None:
    """Return why weights cannot be loaded, in words, or None.

    Args:
        load: loads them, and raises `TaskError` where they do not fit.
        facts: all that decides what comes of it, beside the code: what was loaded once is not loaded again.
            What could not is tried again, for the words name files, which may lie elsewhere by now.
    """
    told = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]
    key = f"{recipe_key(SOURCES, ('torch', 'timm', 'mmdet', 'safetensors'))}-{told}"
    found: list[str | None] = []

    def tried() -> str:
        found.append(_problem(load))
        return REFUSED if found[0] else FITS

    if kept_text("checkpoint", key, tried) == FITS:
        return None
    return found[0] if found else _problem(load)


def checkpoint_problem(task: Task, model: str) -> str | None:
    """Return why the user's weights of a model cannot be loaded; None: they can, or there are none."""
    if task.options.weights_of(model) is None:
        return None
    facts = (task.name, model, task.weights_id(model), task.data_id())
    return loading_problem(lambda: task.load_model(model), *facts)


def _problem(load: Callable[[], object]) -> str | None:
    try:
        load()
    except TaskError as error:
        return str(error)
    return None
