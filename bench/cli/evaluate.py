"""`bench evaluate`: evaluate a quantized model that was saved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vit_ptq_bench.bench.cli.options import add_plugin, add_task_options
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.spec import RunSpec, table_to_dict
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.methods.quantization.bits import (
    BitTable,
    BitWidth,
    Protocol,
    TensorSpec,
    role_of,
)

if TYPE_CHECKING:
    from vit_ptq_bench.methods.quantization.storage import SavedModel
    from vit_ptq_bench.tasks import Task

FACTS = ("run_id", "task", "model", "method", "bits", "protocol")
"""What a file says of itself in words; the specification beside it says the same."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "evaluate",
        help="evaluate a saved quantized model",
        description="Load a quantized model that `bench run --save-models` kept; evaluate it.",
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="safetensors file of a quantized model"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that FILE was made of, where that is a program (a config file): FILE alone is not "
        "believed which one to run",
    )
    parser.add_argument("--device", metavar="NAME", default="cpu", help="default: %(default)s")
    add_task_options(parser)
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics and return the exit status."""
    import torch

    from vit_ptq_bench.bench.execution.devices import check_device
    from vit_ptq_bench.bench.planning import plugins, registry
    from vit_ptq_bench.bench.planning.settings import resolve_task
    from vit_ptq_bench.methods.quantization.storage import read_saved

    check_device(arguments.device)
    plugins.load(Path(file) for file in arguments.plugin or ())
    saved = read_saved(arguments.file)
    spec = stated_spec(saved)
    task = registry.make_task(spec.task.name, resolve_task(spec.task.name, vars(arguments)))
    loaded = task.load_model(chosen_model(task, spec.model.name, arguments.model, arguments.file))
    device = torch.device(arguments.device)
    quantized = saved.build(loaded.module).to(device)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    evaluation = task.evaluate(quantized, loaded, device, None)
    print(
        f"{spec.model.name} {spec.method.name} {spec.bits} {spec.protocol} (run {spec.run_id}), "
        f"{evaluation.n} images"
    )
    for name, value in evaluation.metrics.items():
        ends = evaluation.intervals.get(name)
        interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        print(f"{name} {value:.2f}{interval}")
    return 0


def stated_spec(saved: SavedModel) -> RunSpec:
    """Return what a file says it is, once its parts agree.

    A file without a hash, as release 0.1 wrote them, is said to be one.

    Raises:
        BenchError: the file says nothing of a run, or names another run, model, method, task or bits than
            its own specification or its bit table do.
    """
    facts, path = saved.metadata, saved.path
    told = facts.get("spec")
    if not isinstance(told, dict) or not all(isinstance(facts.get(name), str) for name in FACTS):
        raise BenchError(
            f"{path}: does not say which run it comes from (one of {', '.join(FACTS)}, spec is missing); "
            "only models that `bench run --save-models` kept can be evaluated"
        )
    try:
        spec = RunSpec.from_dict(told)
        _check_facts(spec, saved)
        _check_table(spec, saved)
    except UserError as error:
        raise BenchError(f"{path}: {error}; save the model again") from error
    if not saved.signed:
        print(
            f"note: {path} was written by an earlier version, without a hash over its content: nobody can "
            "tell whether it is still what was saved",
            file=sys.stderr,
        )
    return spec


def _check_facts(spec: RunSpec, saved: SavedModel) -> None:
    """Facts in words against the specification beside them."""
    for name, own in spec.facts.items():
        if saved.metadata[name] != own:
            raise BenchError(
                f"its header contradicts itself: {name} is {saved.metadata[name]!r}, but {own!r} in "
                "its specification; it was edited or damaged"
            )


def _check_table(spec: RunSpec, saved: SavedModel) -> None:
    """The table of the tensors, that of the specification, and what the method makes of the bit width."""
    from vit_ptq_bench.bench.planning import registry

    cls = registry.method_class(spec.method.name)
    tables: dict[str, Mapping[str, Any]] = {"specification": table_to_dict(spec.table)}
    if cls.version == spec.method.version:
        method = cls.create(dict(spec.method.parameters))
        made = method.bit_table(BitWidth.parse(spec.bits), cast(Protocol, spec.protocol))
        made = made if spec.scope is None else made.with_scope(spec.scope)
        tables[f"method, {spec.method.name} at {spec.bits}"] = made.to_dict()
    chosen = BitWidth.parse(spec.bits).mixed or cls.chooses_bits()
    own = planned(saved.table, spec.table) if chosen else saved.table
    for whose, table in tables.items():
        if table != own.to_dict():
            raise BenchError(
                f"the bit table of its tensors is not that of its {whose}; it was edited or damaged"
            )


def planned(table: BitTable, given: Mapping[str, TensorSpec]) -> BitTable:
    """Return the table without the entries of single operations that differ from their site in bits alone.

    Args:
        table: of a run that chose bits.
        given: the table of its specification, whose own entries stay.
    """
    kept = dict(table)
    for key, spec in table.own.items():
        plain = given.get(key, table[role_of(key)])
        if replace(spec, bits=plain.bits) == plain:
            kept[key] = plain
    return BitTable(kept)


def chosen_model(task: Task, stated: str, given: str | None, path: Path) -> str:
    """Return the model to build: the stated one, unless that is a program that only the user may name.

    Raises:
        BenchError: the file names a program and the user none, or the user names another model.
    """
    if given is None and task.names_code(stated):
        raise BenchError(
            f"{path}: its model is the program {stated!r}, which building it would run; if you trust that "
            f"file, name it: --model {stated}"
        )
    if given is not None and given != stated and not task.names_code(given):
        raise BenchError(
            f"{path}: was made of the model {stated!r}, not of {given!r}; leave out --model"
        )
    return given or stated
