"""Task, model and table that a command on a single model works on, refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import plugins, registry
from vit_ptq_bench.bench.planning.answers import ask, asked_table
from vit_ptq_bench.bench.planning.architectures import architecture_problem
from vit_ptq_bench.bench.planning.names import hint, unknown
from vit_ptq_bench.bench.planning.settings import resolve_task
from vit_ptq_bench.bench.planning.subject_options import SubjectOptions
from vit_ptq_bench.methods import Method
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, Protocol
from vit_ptq_bench.tasks import Task


def prepared_task(name: str, model: str, options: SubjectOptions, words: Mapping[str, Any]) -> Task:
    """Return the task called ``name``, which knows ``model``; plug-ins are loaded.

    Args:
        name, model: of the task and its model.
        options: what else was asked for.
        words: what the command line says, with the options of the task.

    Raises:
        BenchError: an unknown task or model, one that no family of models can take, a scope that the task
            does not have, wrong options.
        TaskError: the task refuses its options.
    """
    plugins.load(options.plugin)
    task = registry.make_task(name, resolve_task(name, words))
    if not ask(task, "knows_model", model):
        raise unknown("model", model, ask(task, "model_names"))
    if options.scope is not None and options.scope not in task.scopes:
        there = f"has scopes {', '.join(task.scopes)}" if task.scopes else "has no scopes"
        raise BenchError(f"--scope: task {name} {there}{hint(options.scope, task.scopes)}")
    problem = architecture_problem(task, model, scope_of(task, options))
    if problem is not None:
        raise BenchError(f"{model}: {problem}")
    return task


def scope_of(task: Task, options: SubjectOptions) -> str | None:
    """Return what of a model is quantized: as asked for, else the task's usual scope, None without scopes."""
    return options.scope or (task.scopes[0] if task.scopes else None)


def planned_table(
    method: Method, task: Task, options: SubjectOptions, protocol: Protocol
) -> BitTable:
    """Return the bit table of a method at the bits, protocol and scope asked for.

    Raises:
        BenchError: the method answers what it must not.
        MethodError: a bit width of the wrong form.
    """
    table = asked_table(method, BitWidth.parse(options.bits), protocol)
    scope = scope_of(task, options)
    return table if scope is None else table.with_scope(scope)
