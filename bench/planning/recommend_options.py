"""The options of `bench recommend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.bench.planning.options import option

By = Literal["size", "bit-operations", "seconds"]


@dataclass(frozen=True)
class RecommendOptions:
    """For which model, and how much it may lose.

    Attributes:
        model: as records name it.
        max_drop: points of the first metric that may be lost against full precision.
        task: of the records; empty: the one that has the model.
        protocol: of the rows; empty: any.
        by: what shall be small.
    """

    model: str = option("", "the model, as `bench list models` and records name it", "NAME")
    max_drop: float = option(
        1.0,
        "points of the task's first metric that may be lost against full precision (default: 1)",
        "POINTS",
        at_least=0,
        at_most=100,
    )
    task: str = option("", "task, where records of several have the model", "TASK")
    protocol: str = option("", "rows of this protocol only (default: of any)", "PROTOCOL")
    by: By = option(
        "size",
        "what shall be small: the saved model (default), the bit operations of an image, or the time that "
        "calibration takes",
    )
