"""The data of a run, held against what its plan was made from."""

from __future__ import annotations

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.spec import RunSpec
from vit_ptq_bench.tasks import Task


def check_data(spec: RunSpec, task: Task) -> None:
    """Refuse data that are not those that the run's id was made from.

    Raises:
        BenchError: labels, evaluation images, calibration images or the folder of another domain were changed
            since the run was planned.
    """
    planned = spec.calibration
    content = task.calibration_id(planned.images, planned.draw) if planned.content else None
    folder = planned.source.data if planned.source else None
    for what, before, now in (
        ("labels or evaluation images", spec.task.data, task.data_id()),
        ("calibration images", planned.content, content),
        ("images of the folder to calibrate on", folder, task.folder_id() if folder else None),
    ):
        if before != now:
            raise BenchError(
                f"{what} of task {spec.task.name} were changed while the sweep ran: planned were {before}, "
                f"found were {now}; give the same command again, so that its runs are about the new ones"
            )
