"""The suite that makes one recorded run again, and in what a plan differs from a record."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import RunSpec
from vit_ptq_bench.methods.quantization.bits import Protocol
from vit_ptq_bench.methods.quantization.calibration.sources import TRAINING


def suite_of(record: Record) -> Suite:
    """Return the suite of one run: that of ``record``, and the full-precision run that it needs."""
    spec = record.spec
    name, settings = spec.method.name, spec.method.settings
    source = spec.calibration.source
    arguments = registry.task_class(spec.task.name).model_arguments(spec.model.weights)
    variants = {} if record.variant is None else {name: {record.variant: settings}}
    return Suite(
        name="repeat",
        task=spec.task.name,
        models=(spec.model.name,),
        methods=(name,),
        bits=(spec.bits,),
        protocols=(cast(Protocol, spec.protocol),),
        seeds=(spec.seed,),
        calibration_images=spec.calibration.images or None,
        calibration=(TRAINING if source is None else source.name,),
        sources={source.name: source.parameters} if source and source.parameters else {},
        limit=spec.task.limit,
        parameters={} if variants else {name: settings},
        variants=variants,
        model_args={spec.model.name: arguments} if arguments else {},
        scopes=() if spec.scope is None else (spec.scope,),
        description=f"run {record.run_id} again",
    )


def drawn(records: Sequence[Record], number: int, seed: int) -> list[Record]:
    """Return ``number`` of the records that can be made again, or all where there are fewer, by their id.

    Left out are full precision, which every run brings along, runs that did not end well, and methods and
    tasks that are not registered.

    Raises:
        BenchError: none can be made again.
    """
    methods, tasks = registry.methods(), registry.tasks()
    known = [
        record
        for record in sorted(records, key=lambda record: record.run_id)
        if record.ok
        and record.spec.method.name in methods
        and not record.spec.is_reference
        and record.spec.task.name in tasks
    ]
    if not known:
        raise BenchError(
            f"none of {len(records)} records is a quantized run that ended well, of a method and a task "
            "that are registered; name another folder with --results, or the plug-in with --plugin"
        )
    return random.Random(seed).sample(known, min(number, len(known)))


def planned(runs: Sequence[Run], record: Record) -> Run:
    """Return the run of a plan that repeats ``record``: the one of its method."""
    name = record.spec.method.name
    return next(run for run in runs if run.spec.method.name == name)


def differences(recorded: RunSpec, now: RunSpec) -> list[str]:
    """Return in what two specifications differ, a sentence each; nothing where their ids agree."""
    return [
        f"{path}: {before!r} in the record, {after!r} here"
        for path, before, after in _unlike(recorded.to_dict(), now.to_dict())
    ]


def _unlike(
    before: Mapping[str, Any], after: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key), after.get(key)
        name = f"{path}.{key}" if path else key
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _unlike(one, other, name)
        elif one != other:
            yield name, one, other
