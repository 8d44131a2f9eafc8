"""The card of a saved model: what it is, what it reaches, whose weights it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.records.spec import RunSpec
from vit_ptq_bench.methods.quantization.bits import DETECTOR_ROLES, TensorSpec, role_of
from vit_ptq_bench.values import printable

if TYPE_CHECKING:
    from vit_ptq_bench.methods.quantization.storage import SavedModel

UNKNOWN_LICENCE = "other"
"""Where nothing is known of the licence of the weights."""


NAMED_PARTS = ("reduction", "head", *DETECTOR_ROLES)
"""Roles that not every model has a layer of, and whose layers have it in their names, in every family."""


def model_card(saved: SavedModel, spec: RunSpec) -> str:
    """Return a card in markdown, as model hubs show it: fields by name first, then text.

    Args:
        saved: the file, of which header and names are read.
        spec: of its run, held against the file by `stated_spec`.
    """
    licence = saved.metadata.get("licence")
    fields = {
        "license": licence or UNKNOWN_LICENCE,
        "base_model": spec.model.name,
        "tags": f"[post-training-quantization, {spec.method.name}, {spec.bits}]",
    }
    lines = [
        "---",
        *(f"{name}: {printable(str(value))}" for name, value in fields.items()),
        "---",
        "",
        f"# {printable(spec.model.name)}, {spec.method.name} at {spec.bits}",
        "",
        *_facts(saved, spec),
        "",
        "## Bits",
        "",
        *_bits(saved),
    ]
    return "\n".join(lines)


def _facts(saved: SavedModel, spec: RunSpec) -> Iterable[str]:
    facts = saved.metadata
    scope = f", scope {spec.scope}" if spec.scope else ""
    source = f"; {spec.calibration.marking}" if spec.calibration.source else ""
    yield f"- method: {spec.method.name} version {spec.method.version}{_settings(spec.method.parameters)}"
    if spec.method.transforms:
        yield f"- transforms before it: {', '.join(spec.method.transforms)}"
    if spec.method.table:
        yield f"- bit table: {', '.join(spec.method.table)}"
    yield f"- bits: {spec.bits}, protocol {spec.protocol}{scope}"
    yield f"- weights that were quantized: {printable(str(spec.model.weights))}"
    yield f"- licence of these weights: {printable(facts.get('licence') or 'not known to the benchmark')}"
    yield f"- calibration: {spec.calibration.images} images, draw {spec.calibration.draw}{source}"
    yield f"- data: task {spec.task.name} version {spec.task.version}, {spec.task.data}"
    for name, value in (facts.get("metrics") or {}).items():
        yield f"- {printable(name)}: {value:.2f} % on {facts.get('images')} images, simulated"
    yield f"- run: {spec.run_id}"
    yield f"- network in the file: {_network(facts.get('network'))}"
    if not saved.signed:
        yield "- written by an earlier version, without a hash over its content"


def _settings(parameters: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} = {value!r}" for name, value in sorted(parameters.items()))
    return f" ({printable(told)})" if told else ""


def _network(network: Mapping[str, Any] | None) -> str:
    if network is None:
        return "no, the task builds it"
    return printable(f"{network.get('architecture')} of {network.get('builder')}")


def _bits(saved: SavedModel) -> Iterable[str]:
    """Sites that are represented alike, a line each kind, without those of parts that the model has not."""
    parts = {part for name in saved.tensors for part in name.split(".")}
    absent = set(NAMED_PARTS) - parts
    groups: dict[TensorSpec, list[str]] = {}
    for key, spec in saved.table.items():
        if role_of(key).partition(".")[0] not in absent:
            groups.setdefault(spec, []).append(key)
    for spec, keys in groups.items():
        yield f"- {_words(spec)}: {', '.join(keys)}"


def _words(spec: TensorSpec) -> str:
    if spec.is_float:
        return "floating point"
    how = "symmetric, " if spec.symmetric else ""
    when = ", dynamic" if spec.dynamic else ""
    return f"{spec.bits} bit {spec.scheme}, {how}per {spec.granularity}{when}"
