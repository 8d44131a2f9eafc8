"""The suite that makes one recorded run again, and in what a plan differs from a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

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
