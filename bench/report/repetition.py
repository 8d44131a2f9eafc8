"""Recorded runs beside the same runs made again: what came out the same, image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from vit_ptq_bench.bench.records.outcomes import Outcomes
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store

SHORT = 8
"""Characters of a run's id in a table."""

EXPLAINED = """\
same: the figure, and every image; not made: this version makes another run of
it, or it did not end well; images: share of them that came out otherwise;
points: the largest difference of a figure."""


@dataclass(frozen=True)
class Repetition:
    """A record, and what came of making it again.

    Attributes:
        record: it.
        made: the new record; None: this version makes another run of it, or the run did not end well.
        otherwise: images that came out otherwise; None: one of the two has no outcomes, or other images.
        images: that were compared.
    """

    record: Record
    made: Record | None
    otherwise: int | None = None
    images: int = 0

    @property
    def same(self) -> bool:
        """Whether the figure is the same, and every image where images can be compared."""
        return self.made is not None and self.difference == 0 and not self.otherwise

    @property
    def difference(self) -> float | None:
        """Points that the repeated figure has more; None where one of the two has none."""
        if self.made is None or self.made.value is None or self.record.value is None:
            return None
        return self.made.value - self.record.value

    @property
    def machine(self) -> str:
        """Processor and threads of the record."""
        known = self.record.environment
        threads = known.get("threads")
        name = str(known.get("device_name") or known.get("cpu") or "unknown")
        return f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else name


def held_against(record: Record, store: Store, own: Store) -> Repetition:
    """Return ``record`` of ``store`` beside the run of the same id in ``own``."""
    made = own.read(record)
    if made is None or not made.ok:
        return Repetition(record, None)
    return Repetition(record, made, *unlike_images(store.outcomes(record), own.outcomes(made)))


def unlike_images(before: Outcomes | None, now: Outcomes | None) -> tuple[int | None, int]:
    """Return how many images came out otherwise, and of how many; None of 0 where that cannot be said."""
    if before is None or now is None or len(before) != len(now):
        return None, 0
    return int((before != now).sum()), len(now)


def repetition_text(repetitions: Sequence[Repetition]) -> str:
    """Return a line for each kind of machine that the records are of, and one for each run that differs."""
    groups = defaultdict(list)
    for one in repetitions:
        groups[one.machine].append(one)
    head = ("recorded on", "runs", "same", "not made", "images", "points")
    lines = [
        tabulate([_group(*item) for item in sorted(groups.items())], head, disable_numparse=True)
    ]
    lines += ["", EXPLAINED]
    unlike = [_run(one) for one in repetitions if not one.same]
    if unlike:
        head = ("run", "method", "where", "recorded", "repeated", "images")
        lines += ["", tabulate(unlike, head, disable_numparse=True)]
    return "\n".join(lines)


def _group(machine: str, members: Sequence[Repetition]) -> tuple[str, ...]:
    differences = [abs(one.difference) for one in members if one.difference is not None]
    images = sum(one.images for one in members)
    otherwise = sum(one.otherwise or 0 for one in members)
    return (
        machine,
        str(len(members)),
        str(sum(one.same for one in members)),
        str(sum(one.made is None for one in members)),
        f"{100 * otherwise / images:.2f} %" if images else "-",
        f"{max(differences):.2f}" if differences else "-",
    )


def _run(one: Repetition) -> tuple[str, ...]:
    record, spec = one.record, one.record.spec
    return (
        record.run_id[:SHORT],
        record.title,
        f"{spec.model.name} {spec.bits} {spec.protocol}",
        _figure(record),
        "-" if one.made is None else _figure(one.made),
        "-" if one.otherwise is None else f"{one.otherwise} of {one.images}",
    )


def _figure(record: Record) -> str:
    return "-" if record.value is None else f"{record.value:.2f}"
