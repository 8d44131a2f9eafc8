"""Saved models: which run a file is of, whether its parts agree, and the model in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
from vit_ptq_bench.tasks import Network

if TYPE_CHECKING:
    from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
    from vit_ptq_bench.methods.quantization.storage import SavedModel
    from vit_ptq_bench.tasks import LoadedModel, Task

FACTS = ("run_id", "task", "model", "method", "bits", "protocol")
"""What a file says of itself in words; the specification beside it says the same."""

MOST_PER_BYTE = 4
"""Parameters that a byte of a file can stand for: none takes less than two bits."""


def rebuilt(
    saved: SavedModel, spec: RunSpec, task: Task, given: str | None = None
) -> tuple[LoadedModel, QuantizedModel]:
    """Return the network of a saved model, whose weights mean nothing, and the quantized model.

    The file describes its network, or the user names the program that builds it. Where an earlier version
    wrote the file, the task builds the model and needs its weights for that.

    Args:
        saved: the file.
        spec: of the run, from `stated_spec`.
        task: of that run.
        given: the model that the user named; see `chosen_model`.

    Raises:
        BenchError: the file names a program and the user none, or the user names another model.
        UserError: the network is none of this task's, or the tensors do not fit it.
    """
    name = chosen_model(task, spec.model.name, given, saved.path)
    described = saved.metadata.get("network")
    if described is None and not task.names_code(name):
        loaded = task.load_model(name)
        return loaded, saved.build(loaded.module)
    try:
        if described is None:
            loaded = task.from_code(name, spec.model.weights)
        else:
            at_most = MOST_PER_BYTE * saved.path.stat().st_size
            loaded = task.untrained(name, Network.from_dict(described), at_most)
    except UserError as error:
        raise BenchError(f"{saved.path}: {error}") from error
    return loaded, saved.build(loaded.module)


def stated_spec(saved: SavedModel) -> RunSpec:
    """Return what a file says it is, once its parts agree.

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
    return spec


def remarks(saved: SavedModel, task: Task) -> list[str]:
    """Return what has to be said of a saved model before a figure of it is given, a sentence each."""
    notes = []
    if not saved.signed:
        notes.append(
            f"{saved.path} was written by an earlier version, without a hash over its content: nobody can "
            "tell whether it is still what was saved"
        )
    described = saved.metadata.get("network") is not None
    unused = described or task.names_code(saved.metadata["model"])
    if unused and task.options.checkpoint is not None:
        held = "its network and all weights" if described else "all weights"
        notes.append(f"{saved.path} holds {held}: --checkpoint is not used")
    return notes


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
