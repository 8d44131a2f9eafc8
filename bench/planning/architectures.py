"""Which models are made of layers that a family knows: found out without weights, and kept."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote

from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.tasks import Task, storage

FAMILIES = "vit_ptq_bench.methods.quantization.model.families"
"""The package of the families, and the entry-point group of others' families (see its registry)."""

GROUP = "vit_ptq_bench.families"


def architecture_problem(task: Task, model: str, scope: str | None = None) -> str | None:
    """Return why no family of models can take a model of a task, in words, or None.

    The architecture is built on torch's meta device, where weights take no memory, and wrapped. What came out
    is kept for later processes, unless there are families from elsewhere, which may change.

    Args:
        task: tells architectures apart and builds them.
        model: one that the task knows.
        scope: what of it is quantized, one of the task's; None: all of it, or the task's usual one.

    Raises:
        BenchError: the task answers what it must not.
        TaskError: the architecture cannot be built.
    """
    architecture = ask(task, "architecture", model)
    if architecture is None:
        return None
    if _foreign():
        return _looked_at(task, model, scope) or None
    words = f"{task.name} {architecture}" + (f" {scope}" if scope else "")
    key = f"{_recipe()}-{sha256(words.encode()).hexdigest()[:16]}"
    kept = storage.kept_text("architecture", key, lambda: quote(_looked_at(task, model, scope)))
    return unquote(kept) or None


def _looked_at(task: Task, model: str, scope: str | None) -> str:
    """Why the model is refused; empty: it is not."""
    from vit_ptq_bench.methods.quantization.model.families.registry import find_family, wrap_model

    skeleton = ask(task, "skeleton", model)
    table = equal_table(BitWidth(8, 8))
    try:
        # One from elsewhere need not do without weights: what it refuses is found out with them.
        if find_family(skeleton).__module__.startswith(f"{FAMILIES}."):
            wrap_model(skeleton, table if scope is None else table.with_scope(scope))
    except MethodError as error:
        return str(error)
    return ""


def _foreign() -> bool:
    """Whether other packages or plug-ins have families; without an import of torch if there are none."""
    registry = sys.modules.get(f"{FAMILIES}.registry")
    known = [] if registry is None else registry.FAMILIES.module_dict.values()
    loaded = any(not family.__module__.startswith(f"{FAMILIES}.") for family in known)
    return loaded or bool(entry_points(group=GROUP))


@cache
def _recipe() -> str:
    """Key of all that decides what is refused: the sources around the families, and what they stand on."""
    package = FAMILIES.rpartition(".")[0]
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    parts = (path.relative_to(folder).with_suffix("").parts for path in folder.rglob("*.py"))
    names = sorted(".".join(part for part in path if part != "__init__") for path in parts)
    sources = [f"{package}.{name}".rstrip(".") for name in names]
    return storage.recipe_key(sources, ("timm", "torch"))
