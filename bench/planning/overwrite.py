"""Which runs of a plan still have to run, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vit_ptq_bench.bench.planning import plugins
from vit_ptq_bench.bench.planning.plan import Run, plan_all
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.bench.planning.shard import Shard
from vit_ptq_bench.bench.planning.size import Say, silent
from vit_ptq_bench.bench.records.files import cannot_write
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store


@dataclass(frozen=True)
class Decision:
    """Whether ``run`` has to run.

    Attributes:
        run: the run.
        due: whether it has to run.
        why: the reason, in words.
        record: what there is of it already.
    """

    run: Run
    due: bool
    why: str
    record: Record | None

    @property
    def status(self) -> str | None:
        """Status of the record; None without one."""
        return None if self.record is None else self.record.status


def decisions_of(options: RunOptions, say: Say = silent) -> list[Decision]:
    """Return the runs of a sweep, each with whether it has to run.

    Args:
        options: of the sweep.
        say: takes what the plan says before it is made, see `plan_all`.

    Raises:
        BenchError: anything the user has to mend first.
    """
    plugins.load(options.plugin)
    return decide(planned(options, say), Store(options.folder), options.overwrite)


def planned(options: RunOptions, say: Say = silent) -> list[Run]:
    """Return the runs of a sweep: of all its suites, or of its share of them.

    Args and errors: as of `plan_all`.
    """
    runs = plan_all(options.suites, options.tasks, say)
    return runs if options.shard is None else Shard.parse(options.shard).of(runs)


def decide(runs: Sequence[Run], store: Store, overwrite: str) -> list[Decision]:
    """Hold every run of a plan against the records there are.

    Args:
        runs: the plan.
        store: the records.
        overwrite: ``never`` runs what has no record; ``failed`` also what has no ok record;
            ``missing`` also ok runs whose outcomes file is gone or damaged; ``always`` everything.
    """
    return [_decide(run, store, overwrite) for run in runs]


def _decide(run: Run, store: Store, overwrite: str) -> Decision:
    record = store.read(run)
    if record is None:
        return Decision(run, True, "no record yet", None)
    status = record.status
    if overwrite == "always":
        return Decision(run, True, f"repeated although {status} (--overwrite always)", record)
    if overwrite == "never":
        return Decision(run, False, f"has a record ({status})", record)
    if status != "ok":
        return Decision(run, True, f"was {status}", record)
    if overwrite == "missing" and not store.outcomes_intact(record):
        return Decision(run, True, "its outcomes file is missing or damaged", record)
    return Decision(run, False, "done", record)


def relabel(decisions: Sequence[Decision], store: Store) -> None:
    """Give finished records the suite's present labels: a new label is no reason to run again.

    Raises:
        BenchError: a record cannot be written.
    """
    for decision in decisions:
        record, variant = decision.record, decision.run.variant
        if decision.due or record is None or variant in (None, record.variant):
            continue
        try:
            store.write(replace(record, variant=variant))
        except OSError as error:
            raise cannot_write(store.root, error.strerror or str(error)) from error
