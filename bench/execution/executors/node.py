"""A run as a job on a node of a cluster."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.execution.messages import Job
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.claims import Claims


class RunOnNode:
    """Carries out ``job`` where Slurm calls it, and again if it was preempted or ran out of time there.

    Args:
        job: with the claim of the sweep.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> str:
        """Run, unless somebody else does or has; what became of it, for the job's log.

        Raises:
            OSError: the record cannot be written.
        """
        from vit_ptq_bench.bench.execution import worker

        job = self.job
        claims = Claims(job.output, job.dead_after)
        with claims.kept_alive():
            if not claims.inherit(job.run.run_id, job.claim, _facts(job)):
                return "another process works on it"
            record = Store(job.output).read(job.run)
            if (
                record is not None
                and (record.started, record.finished, record.status) != job.before
            ):
                return "it has its record"
            with tempfile.TemporaryDirectory(prefix="benchrun-") as scratch:
                job = replace(job, scratch=Path(scratch))  # the sweep's lies on another machine
                with worker.temporary_files_in(job.scratch):
                    made = worker.make_record(job, _silent)
                message = worker.written(job, *made)
        return str(message)

    def checkpoint(self) -> Any:
        """Return what submitit submits anew when the job is preempted or out of time: the whole run."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def _facts(job: Job) -> dict[str, Any]:
    number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    own = "_".join(part for part in number if part) or os.environ.get("SLURM_JOB_ID", "")
    return {"label": job.run.label, "device": job.device, "slurm_job": own}


def _silent(phase: str, done: int, total: int) -> None:
    """Nobody listens on a node; `bench status` tells that the job runs."""
