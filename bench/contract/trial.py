"""A method tried on every clause of the contract."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.bench.contract.checks import CHECKS, Check
from vit_ptq_bench.bench.contract.subject import Broken, NotApplicable, Subject
from vit_ptq_bench.methods import Method

Outcome = Literal["holds", "broken", "does not apply"]


@dataclass(frozen=True)
class Finding:
    """What came of one clause on one model.

    Attributes:
        check: the clause.
        on: the model.
        outcome: how it ended.
        words: what was found; empty where it holds.
        seconds: what it took.
    """

    check: Check
    on: str
    outcome: Outcome
    words: str
    seconds: float


def cases(checks: Sequence[Check] = CHECKS) -> list[tuple[Check, str]]:
    """Return each clause with each model it is tried on, model by model."""
    order = list(dict.fromkeys(on for check in checks for on in check.on))
    return [(check, on) for on in order for check in checks if on in check.on]


def try_method(cls: type[Method], checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Yield what comes of each clause; a method that raises breaks the clause, whatever it raises."""
    subject: Subject | None = None
    for check, on in cases(checks):
        if subject is None or subject.on != on:
            subject = Subject(cls, on)
        yield _tried(check, subject)


def _tried(check: Check, subject: Subject) -> Finding:
    began = time.perf_counter()
    outcome: Outcome = "holds"
    words = ""
    try:
        check.look(subject)
    except NotApplicable as reason:
        outcome, words = "does not apply", str(reason)
    except Broken as problem:
        outcome, words = "broken", str(problem)
    except Exception as error:  # the method's own: told with the line where it was raised
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        outcome = "broken"
    return Finding(check, subject.on, outcome, words, time.perf_counter() - began)
