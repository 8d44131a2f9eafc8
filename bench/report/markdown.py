"""The leaderboard as markdown: the answer first, then places over all cells, then every table, folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase

from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.bench.report.factorial import Factorial, sections
from vit_ptq_bench.bench.report.footnotes import chosen_words, deviation
from vit_ptq_bench.bench.report.legend import ANSWER, LEGEND, PLACES, SHARED_OUT, of_classes
from vit_ptq_bench.bench.report.origins import gains_nothing
from vit_ptq_bench.bench.report.published import Published, extent, of_row, sentence
from vit_ptq_bench.bench.report.standings import SIGNS
from vit_ptq_bench.bench.report.summary import (
    Average,
    Choice,
    Overall,
    choices,
    counted,
    overall,
)
from vit_ptq_bench.bench.report.tables import Place, Row, Table, by_section
from vit_ptq_bench.bench.report.text import code, plain, tagged
from vit_ptq_bench.bench.report.text import table as table_of
from vit_ptq_bench.methods.api.words import transform_words

NO_RESULT = "No method has a result here."

NAMED = 2
"""Methods like the best that are named."""

SHOWN = 10
"""Methods that are placed before the rest is folded."""

SHORT = 8
"""Characters of a run's id."""


def render(
    records: Sequence[Record],
    found: Sequence[Table],
    findings: Sequence[str],
    parts: Sequence[Factorial] = (),
    beside: str = "",
) -> str:
    """Return the markdown text.

    Args:
        records: those that the tables are made of.
        found: the tables.
        findings: damaged and conflicting files, in words.
        parts: the factorials among the records.
        beside: a folder in that of the records, with the leaderboard of a real model; empty: there is none.
    """
    notes: dict[str, str] = {}
    text = ["# Leaderboard", *_about(records, found, findings)]
    if beside:
        text.append(
            f"Of a real model on photographs: [{beside}]({beside}/leaderboard.md), to be read first."
        )
    text += [*_answers(found), *_overall(found), *_tables(found, notes), *sections(parts)]
    if notes:
        text += ["## Footnotes", *(f"({mark}) {note}" for note, mark in notes.items())]
    text += ["## How to read it", LEGEND]
    marks = of_classes(name for one in found for row in one.rows for name in row.classes)
    if marks:
        text.append(marks)
    if records:
        text.append(_hardware(records))
    if findings:
        text += ["## Findings", "\n".join(f"- {plain(one)}" for one in findings)]
    text.append("Made by `bench leaderboard --results FOLDER` from the records beside it.")
    return "\n\n".join(text) + "\n"


def footnote_mark(number: int) -> str:
    """a, b, ..., z, aa, ab, ...: the mark of footnote ``number``, from 0."""
    mark = ""
    while number >= 0:
        number, letter = divmod(number, len(ascii_lowercase))
        mark, number = ascii_lowercase[letter] + mark, number - 1
    return mark


def _about(
    records: Sequence[Record], found: Sequence[Table], findings: Sequence[str]
) -> Iterator[str]:
    """What the page is of, in a sentence or two."""
    labels = {row.label for table in found for row in table.ranked}
    models = sorted({record.spec.model.name for record in records})
    if not records:
        yield f"{NO_RESULT} There are no records; `bench run SUITE --output FOLDER` makes some."
    elif not labels:
        done = sum(record.ok for record in records)
        ended = f"{done} of full precision alone" if done else "none ended well"
        yield f"{NO_RESULT} {_count(len(records), 'record')}, {ended}."
    else:
        yield (
            f"{_count(len(labels), 'method')} of post-training quantization on "
            f"{', '.join(map(plain, models))}; {_count(len(records), 'record')}."
        )
    if findings:
        yield f"**{len(findings)} of its files are not as they should be: see *Findings* at the end.**"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _hardware(records: Sequence[Record]) -> str:
    machines = sorted(
        {
            f"{env['device_name']}, {env['threads']} threads, torch {env.get('torch')}"
            for env in (record.environment for record in records)
            if env.get("device_name") and env.get("threads") is not None
        }
    )
    if len(machines) > 1:
        return (
            f"Seconds and memory come from different machines: {'; '.join(map(plain, machines))}."
        )
    return f"Machine: {plain(machines[0])}." if machines else "No run finished."


def _by_place(found: Sequence[Table]) -> Iterator[tuple[str, list[Table]]]:
    """The tables of one task, protocol, scope and source, under their title."""
    for tables in by_section(found):
        yield _title(tables[0].place), tables


def _title(place: Place) -> str:
    part = "" if place.limit is None else f", {place.limit} images of the evaluation set"
    scope = f", scope {code(place.scope)}" if place.scope else ""
    how = f"protocol {code(place.protocol)}{scope}{plain(place.images)}"
    return f"{plain(place.task)} (version {place.version}{part}), {how}"


def _answers(found: Sequence[Table]) -> Iterator[str]:
    if not any(table.ranked for table in found):
        return
    yield "## Which method to use"
    chosen = choices(found)
    usual = [choice for choice in chosen if not choice.table.place.shared_out]
    yield from _answer_tables(usual)
    yield ANSWER
    legend = of_classes(name for choice in chosen for row in choice.besides for name in row.classes)
    if legend:
        yield legend
    if chosen[len(usual) :]:
        words = "Bits that differ from operation to operation, or are more than the width says"
        yield from _folded(words, [SHARED_OUT, *_answer_tables(chosen[len(usual) :])])


def _answer_tables(chosen: Sequence[Choice]) -> Iterator[str]:
    head = ["model", "bits", "fp32", "best", "% [95 %]", "like it", "cheapest", "s"]
    for title, tables in _by_place([choice.table for choice in chosen]):
        here = {table.place for table in tables}
        yield f"{title}:"
        yield table_of([_answer(one) for one in chosen if one.table.place in here], head)


def _answer(choice: Choice) -> list[str]:
    place, full = choice.table.place, choice.table.reference
    nothing, cheapest = choice.basis == "nothing", choice.cheapest
    equal = _named(choice.equal) + (SIGNS[choice.basis] if choice.equal else "")
    besides = f"besides {_named(choice.besides, 1)}" if choice.besides else ""
    return [
        plain(place.model),
        plain(place.bits),
        "" if full is None else _number(full.value, 1),
        plain(choice.best.label),
        f"{_number(choice.best.value, 1)}{_ends(choice.best)}",
        "; ".join(filter(None, ["-" if nothing else equal, besides])),
        "-" if cheapest is None else plain(cheapest.label),
        "-" if cheapest is None else _number(cheapest.seconds, 1),
    ]


def _named(rows: Sequence[Row], count: int = NAMED) -> str:
    """The first of rows by name, and how many more there are."""
    more = f" and {len(rows) - count} more" if len(rows) > count else ""
    return ", ".join(plain(row.name) for row in rows[:count]) + more


def _ends(row: Row) -> str:
    """The interval of a row's figure, behind it."""
    return "" if row.interval is None else f" [{row.interval[0]:.1f}, {row.interval[1]:.1f}]"


def _overall(found: Sequence[Table]) -> Iterator[str]:
    placed = [
        (title, len(counted(tables)), overall(tables))
        for title, tables in _by_place(found)
        if len(counted(tables)) > 1
    ]
    if not placed:
        return
    yield "## Over all cells"
    for title, cells, rows in placed:
        yield f"{title}, {cells} cells:"
        yield table_of([_placed(row) for row in rows[:SHOWN]], _PLACED)
        if rows[SHOWN:]:
            yield from _folded(
                f"the other {len(rows) - SHOWN}",
                [table_of([_placed(row) for row in rows[SHOWN:]], _PLACED)],
            )
    yield PLACES


_PLACED = ("method", "mean rank [95 %]", "wins % [95 %]", "cells")


def _placed(row: Overall) -> list[str]:
    return [plain(row.name), _average(row.rank), _average(row.wins), str(row.cells)]


def _average(average: Average) -> str:
    interval = "" if average.low is None else f" [{average.low:.1f}, {average.high:.1f}]"
    return f"{average.value:.1f}{interval}"


def _tables(found: Sequence[Table], notes: dict[str, str]) -> Iterator[str]:
    for title, tables in _by_place(found):
        yield f"## {title}"
        for table in tables:
            count = len(table.ranked)
            place = table.place
            words = f"{tagged(f'{place.model} {place.bits}')}: {_count(count, 'method')}"
            yield from _folded(words, [_ranking(table, notes)])


def _folded(summary: str, paragraphs: Sequence[str]) -> Iterator[str]:
    yield f"<details><summary>{summary}</summary>"
    yield from paragraphs
    yield "</details>"


def _ranking(table: Table, notes: dict[str, str]) -> str:
    full = None if table.reference is None else table.reference.value
    images = _usual_images(table)
    own = table.rows if table.reference is None else (table.reference, *table.rows)
    papers = {row.label: of_row(table, row) for row in own}
    has_papers = any(papers.values())
    lines = []
    if table.reference is not None:
        lines.append(_line("", table.reference, table, None, ""))
    for row in table.rows:
        note = _note(row, table, images, papers[row.label])
        mark = f"({notes.setdefault(note, footnote_mark(len(notes)))})" if note else ""
        lines.append(_line(_rank(row), row, table, full, mark))
    if has_papers:
        for line, row in zip(lines, own, strict=True):
            if row.runs:
                line.insert(3, _paper(row, papers[row.label]))
    chosen = table.place.shared_out
    if chosen:
        for line, row in zip(lines, own, strict=True):
            if row.runs:
                line.insert(-3, row.stored)
    lines += [["", plain(label), "not run"] for label in table.missing]
    titles = [f"{plain(title)}" for _, title in table.titles]
    head = [
        "rank",
        "method",
        f"{plain(table.metric)} %",
        *(["paper %"] if has_papers else []),
        *titles,
    ]
    bits = ["bits"] if chosen else []
    return table_of(lines, [*head, "drop", "s", "MB", *bits, "size", "run", "notes"])


def _paper(row: Row, found: Sequence[Published]) -> str:
    """What papers report, and how far we are from it."""
    ends = extent(found)
    if ends is None or row.value is None:
        return ""
    low, high = ends
    if low == high:
        return f"{low:.2f} ({row.value - low:+.2f})"
    return f"{low:.2f} to {high:.2f} ({row.value - high:+.2f} to {row.value - low:+.2f})"


def _rank(row: Row) -> str:
    if row.standing is None:
        return ""
    if row.standing.rank is None:
        return "-"
    return f"{row.standing.rank}{SIGNS[row.standing.basis]}"


def _line(rank: str, row: Row, table: Table, full: float | None, mark: str) -> list[str]:
    if not row.runs:
        return ["", plain(row.label), _failure(row)]
    is_reference = row.record.fidelity == REFERENCE_FIDELITY
    drop = None if full is None or row.value is None else full - row.value
    memory = row.mean(lambda record: record.peak_memory_mb)
    more = f" +{len(row.runs) - 1}" if len(row.runs) > 1 else ""
    return [
        rank,
        plain(row.name),
        _figure(row),
        *(_number(row.metric(name), 1) for name, _ in table.titles),
        "" if is_reference else _number(drop, 1),
        "" if is_reference else _number(row.seconds, 1),
        "" if is_reference else _number(memory, 0),
        _number(row.mean(lambda record: record.size_mb), 2),
        f"`{row.record.run_id[:SHORT]}`{more}",
        mark,
    ]


def _figure(row: Row) -> str:
    if row.deviation is not None:
        return f"{row.value:.2f} ± {row.deviation:.2f} ({len(row.runs)})"
    return f"{row.value:.2f}{_ends(row)}"


def _failure(row: Row) -> str:
    status = ", ".join(sorted({record.status for record in row.failures}))
    reason = str((row.record.error or {}).get("message", "")).splitlines()
    return plain(f"{status}: {reason[0][:80] if reason else ''}")


def _usual_images(table: Table) -> int | None:
    """The calibration images that most rows have."""
    counts = [row.record.spec.calibration.images for row in table.rows]
    return max(sorted(set(counts)), key=counts.count) if counts else None


def _note(row: Row, table: Table, usual_images: int | None, papers: Sequence[Published]) -> str:
    """The footnote of a row: what a reader has to know to compare it with the others."""
    record = row.record
    images = record.spec.calibration.images
    texts = [
        f"does not compare: {', '.join(row.classes)}" if row.classes else "",
        record.spec.calibration.marking,
        deviation(record),
        *chosen_words(record),
        *transform_words(record.spec.method.transforms),
        *record.notes,
        gains_nothing(row, table.rows),
        "" if images == usual_images else f"{images} calibration images",
        f"{len(row.failures)} of its runs failed" if row.runs and row.failures else "",
        "MB: what was reserved of the GPU, evaluation included"
        if record.peak_has_evaluation
        else "",
    ]
    warned = record.environment.get("warnings")
    own = "warned while calibrating, see `bench show`" if warned else ""
    return "; ".join(filter(None, [*map(plain, texts), own, plain(sentence(papers))]))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
