"""The models that a suite names: those that its task knows and a family of models can take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.bench.planning.architectures import architecture_problem
from vit_ptq_bench.bench.planning.names import choose, is_glob
from vit_ptq_bench.bench.planning.size import Say
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.tasks import Task

SHOWN = 4
"""Names that are told of those that a glob has and no family knows."""


def models_of(suite: Suite, task: Task, scopes: Sequence[str | None], say: Say) -> list[str]:
    """Return the models of ``suite``; a task may know more of them by name than it lists.

    Args:
        suite: names models, or globs of those that the task lists.
        task: knows them.
        scopes: what of each is quantized, a run for each; see `architecture_problem`.
        say: told what of a glob is left out, because its architecture is not supported.

    Raises:
        BenchError: a name that the task does not know, or whose architecture no family of models knows; with
            file and line.
    """
    listed: list[str] | None = None
    chosen: dict[str, None] = {}
    knows = _knows(task)
    for pattern in suite.models:
        if not is_glob(pattern) and knows(pattern):
            _require_supported(suite, task, pattern, scopes)
            chosen[pattern] = None
            continue
        listed = ask(task, "model_names") if listed is None else listed
        try:
            found = choose_one(suite, "models", "model", pattern, listed)
        except BenchError:
            found = _unlisted(suite, task, pattern, scopes)
            if not found:
                raise
        chosen.update(dict.fromkeys(_supported(suite, task, pattern, found, scopes, say)))
    return list(chosen)


def choose_one(suite: Suite, key: str, kind: str, pattern: str, known: list[str]) -> list[str]:
    """Return what a name or glob of ``suite`` selects.

    Raises:
        BenchError: nothing; with file and line.
    """
    try:
        return choose(kind, [pattern], known)
    except BenchError as error:
        raise suite.error(error, key, value=pattern) from None


def _unlisted(suite: Suite, task: Task, pattern: str, scopes: Sequence[str | None]) -> list[str]:
    """Models that the task does not list, of which a family may know some.

    Raises:
        BenchError: the first is not supported: all are as a rule, and looking at hundreds takes minutes.
    """
    found: list[str] = ask(task, "unlisted_names", pattern) if is_glob(pattern) else []
    if found and (problem := _problem(task, found[0], scopes)) is not None:
        raise suite.error(
            f"{pattern}: {len(found)} models match, of no family that is supported (`bench list models "
            f"--supported` lists those that are); {found[0]}: {problem}",
            "models",
            value=pattern,
        )
    return found


def _require_supported(suite: Suite, task: Task, model: str, scopes: Sequence[str | None]) -> None:
    problem = _problem(task, model, scopes)
    if problem is not None:
        raise suite.error(f"{model}: {problem}", "models", value=model)


def _supported(
    suite: Suite,
    task: Task,
    pattern: str,
    models: Iterable[str],
    scopes: Sequence[str | None],
    say: Say,
) -> list[str]:
    """Those of the models that ``pattern`` selects whose architecture a family knows."""
    problems = {model: _problem(task, model, scopes) for model in models}
    left_out = [model for model, problem in problems.items() if problem is not None]
    if left_out and len(left_out) == len(problems):
        first = f"{left_out[0]}: {problems[left_out[0]]}"
        raise suite.error(f"{pattern}: no model is supported; {first}", "models", value=pattern)
    if left_out:
        more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        say(
            f"{pattern}: left out, for no family of models knows their layers: "
            f"{', '.join(left_out[:SHOWN])}{more}; `bench list models --supported` lists the others"
        )
    return [model for model, problem in problems.items() if problem is None]


def _problem(task: Task, model: str, scopes: Sequence[str | None]) -> str | None:
    """Why a model cannot be taken in one of the scopes, or None."""
    found = (architecture_problem(task, model, scope) for scope in scopes)
    return next((problem for problem in found if problem is not None), None)


def _knows(task: Task) -> Callable[[str], bool]:
    """Whether ``task`` knows a model; one that knows those it lists is asked for the list once."""
    if type(task).knows_model is Task.knows_model:
        return frozenset(ask(task, "model_names")).__contains__
    return partial(ask, task, "knows_model")
