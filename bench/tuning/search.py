"""The search: some trials at random, then always the configuration of which most is expected."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.bench.tuning.space import Configuration, Space
from vit_ptq_bench.bench.tuning.surrogate import expected_best
from vit_ptq_bench.bench.tuning.trials import Trial
from vit_ptq_bench.methods import MethodError

FIRST = 8
"""Trials before anything is expected: the method as it is, and seven at random."""

MOST_CANDIDATES = 4096
"""Configurations that are compared for a trial; of a larger space so many are drawn anew for each."""


@dataclass(frozen=True)
class Objective:
    """What is compared.

    Attributes:
        name: for people.
        score: maps a value to a number that grows as it gets better, on a scale on which differences count.
        digits: of a value, behind the point.
    """

    name: str
    score: Callable[[float], float]
    digits: int = 5

    def shown(self, value: float) -> str:
        """Return a value as text."""
        return f"{value:.{self.digits}f}"


def best(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """Return the trial of the best score, of equal ones the first; None where none has a value."""
    known = [one for one in trials if one.value is not None]
    return max(known, key=lambda one: objective.score(one.value or 0.0), default=None)


def next_configuration(
    space: Space, trials: Sequence[Trial], objective: Objective, seed: int
) -> Configuration | None:
    """Return what to try behind ``trials``; None when all has been tried.

    It follows from the arguments alone, so that a search that was stopped goes on as if it had not been.
    """
    if not trials:
        return space.default
    generator = np.random.default_rng([seed, len(trials)])
    numbers = np.array([space.number(one.configuration) for one in trials])
    candidates = _candidates(space, numbers, generator)
    if not len(candidates):
        return None
    known = [i for i, one in enumerate(trials) if one.value is not None]
    if len(trials) < FIRST or not known:
        return space.configuration(int(generator.choice(candidates)))
    scores = np.array([objective.score(trials[i].value or 0.0) for i in known])
    tried = space.codes(numbers[known])
    chosen = expected_best(tried, scores, space.codes(candidates), generator)
    return space.configuration(int(candidates[chosen]))


def _candidates(
    space: Space, tried: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of configurations that the method takes and that have not been tried."""
    if space.size <= MOST_CANDIDATES:
        drawn = np.arange(space.size)
    else:
        drawn = np.sort(generator.choice(space.size, MOST_CANDIDATES, replace=False))
    fresh = np.setdiff1d(drawn, tried)
    return np.array([n for n in fresh if space.allows(int(n))], dtype=np.int64)


def search(
    space: Space,
    objective: Objective,
    measure: Callable[[Configuration], float],
    trials: Sequence[Trial],
    count: int,
    seed: int,
    keep: Callable[[Sequence[Trial]], None],
) -> list[Trial]:
    """Try configurations until ``count`` have been tried, or all; return the trials in order.

    Args:
        space: what can be tried.
        objective: what is compared.
        measure: gives the value of a configuration; a `MethodError` is a trial that the method refused.
        trials: those that there are.
        count: all trials together.
        seed: of all draws.
        keep: called with all trials after each.
    """
    found = list(trials)
    while len(found) < count:
        configuration = next_configuration(space, found, objective, seed)
        if configuration is None:
            break
        began = time.monotonic()
        value, message = None, ""
        try:
            value = measure(configuration)
        except MethodError as error:
            message = str(error)
        found.append(Trial(configuration, value, time.monotonic() - began, message))
        keep(found)
    return found
