"""Whether contributed records can be merged: what they say, what bears it out, what is plausible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any, Literal, cast

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import ask, asked_table, blamed
from vit_ptq_bench.bench.planning.method_settings import make_method
from vit_ptq_bench.bench.records.proof import flaw
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import table_to_dict
from vit_ptq_bench.bench.records.store import Store, load_record
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.methods.quantization.bits import BitWidth, Protocol
from vit_ptq_bench.tasks import TaskOptions

Level = Literal["ok", "look", "refused"]

ERRORS = 5.0
"""Standard errors of a difference from which a figure is not plausible without a look."""

NO_ERROR = 1.0
"""Points that stand for a standard error where there is none."""


@dataclass(frozen=True)
class Verdict:
    """What is to say of one record.

    Attributes:
        source: file or run id.
        level: ``ok``; ``look``: somebody has to look at it; ``refused``: it cannot be merged.
        words: why, a sentence each.
    """

    source: str
    level: Level
    words: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What the project has already.

    Attributes:
        records: by run id.
        data: (task, version, hash) of data that records or bundled tasks have.
        weights: (model, hash).
    """

    records: dict[str, Record]
    data: frozenset[tuple[str, int, str | None]]
    weights: frozenset[tuple[str, str | None]]


def known_of(folders: Sequence[Path]) -> Known:
    """Return what the records of folders, and the tasks that bring their data, know."""
    found = [record for folder in folders for record in Store(folder).records()]
    data = {_data(record) for record in found} | set(_bundled_data())
    weights = {(record.spec.model.name, record.spec.model.weights) for record in found}
    return Known({record.run_id: record for record in found}, frozenset(data), frozenset(weights))


def check_contribution(text: str, known: Known) -> list[Verdict]:
    """Return a verdict on every record of a folder, or on a record file.

    Raises:
        BenchError: there is no record.
    """
    path = Path(text)
    if path.is_dir():
        store = Store(path)
        records = store.records()
    else:
        store, one = load_record(text, path)
        records = [one]
    verdicts = [
        Verdict(str(file), "refused", (str(error),)) for file, error in sorted(store.damaged)
    ]
    if not records and not verdicts:
        raise BenchError(f"{text} holds no records (looked for runs/<task>/<model>/<run id>.json)")
    verdicts += [
        Verdict(str(file), "refused", ("another record with the same id and other numbers",))
        for file in sorted(store.conflicts())
    ]
    return verdicts + [_verdict(record, store, records, known) for record in records]


def _verdict(record: Record, store: Store, beside: Sequence[Record], known: Known) -> Verdict:
    refused = tuple(_refusals(record, store))
    if refused:
        return Verdict(record.run_id, "refused", refused)
    others = [*(one for one in beside if one is not record), *known.records.values()]
    doubts = (*_unknown(record, known), *_implausible(record, others, known))
    return Verdict(record.run_id, "look" if doubts else "ok", doubts)


def _refusals(record: Record, store: Store) -> Iterator[str]:
    """What no look can mend."""
    if not record.ok:
        yield f"ended as {record.status}: there is no figure to merge"
        return
    wrong = flaw(record, store)
    if record.outcomes_sha256 is None:
        yield "has no per-image outcomes, which could bear its figure out"
    elif wrong is not None:
        yield wrong
    yield from _method_problems(record)


def _method_problems(record: Record) -> Iterator[str]:
    """The method must be here, in this version, and make the bit table that was used."""
    spec = record.spec
    cls = registry.methods().get(spec.method.name)
    if cls is None:
        yield f"method {spec.method.name!r} is not here: contribute its file too"
        return
    if cls.version != spec.method.version:
        yield (
            f"is of version {spec.method.version} of {cls.name}; here it is {cls.version}: run it again"
        )
        return
    try:
        with blamed(cls, "create()"):
            method = make_method(cls, spec.method.settings)
        bits, protocol = BitWidth.parse(spec.bits), cast(Protocol, spec.protocol)
        table = asked_table(method, bits, protocol)
    except UserError as error:
        yield str(error)
        return
    table = table if spec.scope is None else table.with_scope(spec.scope)
    if table.to_dict() != table_to_dict(spec.table):
        yield f"its bit table is not that of {cls.name} at {spec.bits}"


def _unknown(record: Record, known: Known) -> Iterator[str]:
    """What somebody else cannot repeat from the repository alone."""
    environment = record.environment
    if not environment.get("git_commit"):
        yield "says no commit: it ran outside of a checkout"
    elif environment.get("git_dirty"):
        yield "ran from a checkout with changes"
    if environment.get("plugins"):
        names = ", ".join(str(one.get("file", "?")) for one in environment["plugins"])
        yield f"ran with plug-ins: {names}"
    if _data(record) not in known.data:
        yield f"its data ({record.spec.task.data}) are not known here: say which they are"
    if (record.spec.model.name, record.spec.model.weights) not in known.weights:
        yield f"its weights ({record.spec.model.weights}) are not known here: say whose they are"


def _implausible(record: Record, others: Sequence[Record], known: Known) -> Iterator[str]:
    """Figures that chance does not explain."""
    same = known.records.get(record.run_id)
    if same is not None and same.value is not None and same.value != record.value:
        yield f"has {record.value:.2f} where the same run has {same.value:.2f} here"
    peers = [one for one in others if one.ok and _cell(one) == _cell(record)]
    for one in sorted(peers, key=lambda one: (not one.spec.is_reference, -abs(_gap(record, one)))):
        reason = _contradiction(record, one)
        if reason is not None:
            yield reason
            return  # the plainest says enough
    if not record.spec.is_reference and not any(one.spec.is_reference for one in peers):
        yield "its full-precision run is not beside it"


def _gap(record: Record, other: Record) -> float:
    return (record.value or 0.0) - (other.value or 0.0)


def _contradiction(record: Record, other: Record) -> str | None:
    """Why two figures of one cell cannot both be, or None."""
    gap = _gap(record, other)
    limit = ERRORS * hypot(_error(record), _error(other))
    if record.spec.is_reference:
        return None
    if other.spec.is_reference:
        return f"is {gap:.1f} points above full precision" if gap > limit else None
    if _kind(record) != _kind(other):
        return None
    if record.spec.bits == other.spec.bits:
        words = f"is {gap:+.1f} points from seed {other.spec.seed} of the same method"
        return words if abs(gap) > limit else None
    fewer = _bits(record) < _bits(other)
    if fewer and gap > limit:
        return f"at {record.spec.bits} is {gap:.1f} points above {other.spec.bits}"
    return None


def _bits(record: Record) -> tuple[int, int]:
    bits = BitWidth.parse(record.spec.bits)
    return bits.weight, bits.activation


def _error(record: Record) -> float:
    found = record.standard_errors.get(record.primary_metric or "")
    return NO_ERROR if found is None else found


def _data(record: Record) -> tuple[str, int, str | None]:
    task = record.spec.task
    return task.name, task.version, task.data


def _cell(record: Record) -> tuple[Any, ...]:
    """What figures must share to be held against each other."""
    spec = record.spec
    return (*_data(record), spec.task.limit, spec.model.name, spec.model.weights)


def _kind(record: Record) -> tuple[Any, ...]:
    """Method with its settings, protocol, scope, images and source: what seeds and bits leave alike."""
    spec = record.spec
    settings = sorted((key, str(value)) for key, value in spec.method.settings.items())
    return (
        spec.method.name,
        spec.method.version,
        tuple(settings),
        spec.protocol,
        spec.scope,
        spec.calibration.images,
        spec.calibration.source_title,
    )


def _bundled_data() -> Iterator[tuple[str, int, str | None]]:
    """Data that a task brings with it; a task whose data are the user's has none to tell."""
    for name, cls in sorted(registry.tasks().items()):
        try:
            task = registry.make_task(name, TaskOptions())
            yield name, cls.version, ask(task, "data_id")
        except UserError:
            continue
