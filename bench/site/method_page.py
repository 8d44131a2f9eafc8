"""The page of a method: its own text, then what the registry, the papers and the records say of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from itertools import groupby
from typing import TYPE_CHECKING, Any, get_type_hints

from tabulate import tabulate

from vit_ptq_bench.bench.planning.suite import PROTOCOLS
from vit_ptq_bench.bench.report.published import RELEASED, Published, figures
from vit_ptq_bench.bench.report.standings import SIGNS
from vit_ptq_bench.bench.report.tables import Place, Row, Table, by_section
from vit_ptq_bench.bench.report.text import code, own_words, plain
from vit_ptq_bench.bench.site.convention import EXAMPLE_BITS, convention

if TYPE_CHECKING:
    from vit_ptq_bench.methods import Method

COMMON_BITS = ("W6A6", "W4A4", "W3A3")
"""Bit widths that have a column beside each other."""

FIDELITIES = {
    "official": "the algorithm is confirmed from the authors' code",
    "reimplementation": "written from the paper",
    "inspired": "in the paper's spirit: its text or code says too little",
    "reference": "no quantization",
}


def method_page(
    cls: type[Method], own: str, measured: Sequence[tuple[str, Sequence[Table]]]
) -> str:
    """Return the page of a method as markdown.

    Args:
        cls: the method.
        own: what is written of it by hand: the idea and its formulas, under a heading of first order.
        measured: folders of results by title, with their tables.
    """
    text = [own.rstrip(), "## In this benchmark", _card(cls), _docstring(cls)]
    text += ["### Convention", _conventions(cls), *_settings(cls)]
    for title, found in measured:
        text += _measured(cls.name, title, found)
    text += _published(cls.name)
    return "\n\n".join(text) + "\n"


def index_page(families: Sequence[tuple[str, Sequence[type[Method]]]]) -> str:
    """Return the page that lists all methods by family."""
    text = [
        "# Methods",
        "Each page says the idea, the formulas, the convention, and what came of it here.",
    ]
    for family, own in families:
        rows = [[f"[{m.name}]({m.name}.md)", own_words(m.paper), m.fidelity] for m in own]
        text += [f"## {family.capitalize()}", _table(["method", "paper", "fidelity"], rows)]
    return "\n\n".join(text) + "\n"


def by_family(methods: Iterable[type[Method]]) -> list[tuple[str, list[type[Method]]]]:
    """Return the families in alphabetical order with their methods by name."""
    ordered = sorted(methods, key=lambda cls: (cls.family, cls.name))
    return [(str(family), list(own)) for family, own in groupby(ordered, lambda cls: cls.family)]


def _card(cls: type[Method]) -> str:
    rows = [
        ["name", f"`{cls.name}`, version {cls.version}"],
        ["paper", own_words(cls.paper)],
        ["family", cls.family],
        ["fidelity", f"{cls.fidelity}: {FIDELITIES[cls.fidelity]}"],
        ["file", f"`methods/{cls.__module__.rpartition('.')[2]}.py`"],
    ]
    return _table(["", ""], rows)


def _docstring(cls: type[Method]) -> str:
    """The docstring of the class as markdown: its double backticks are literals there."""
    return re.sub(r"``(.+?)``", r"`\1`", inspect.getdoc(cls) or "", flags=re.DOTALL)


def _conventions(cls: type[Method]) -> str:
    rows = [[f"`{protocol}`", *map(own_words, convention(cls, protocol))] for protocol in PROTOCOLS]
    text = _table(["protocol", "images", f"at {EXAMPLE_BITS}, beside the common table"], rows)
    return f"{text}\n\nThe common table: weights per output channel, activations per tensor, affine, static."


def _settings(cls: type[Method]) -> Iterator[str]:
    if not fields(cls.Parameters):
        return
    words = _attributes(cls.Parameters)
    hints = get_type_hints(cls.Parameters)
    rows = [
        [f"`{one.name}`", f"`{one.default}`", _values(hints[one.name]), words.get(one.name, "")]
        for one in fields(cls.Parameters)
        if one.default is not MISSING
    ]
    yield "### Settings"
    yield f"In a suite's `[parameters.{cls.name}]`:"
    yield _table(["setting", "default", "values", "what it does"], rows)


def _values(hint: Any) -> str:
    """A type as words; of a choice the values."""
    text = getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)
    choices = re.findall(r"'([^']*)'", text)
    return ", ".join(f"`{one}`" for one in choices) if choices else f"{text}"


def _attributes(cls: type) -> dict[str, str]:
    """Name -> words, from the sections ``Attributes`` of a dataclass and of those it is made from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition(
            "Attributes:\n"
        )
        for names, words in re.findall(
            r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", section, re.MULTILINE
        ):
            text = own_words(re.sub(r"``(.+?)``", r"`\1`", words))
            found |= {name.strip(): text for name in names.split(",")}
    return found


def _measured(name: str, title: str, found: Sequence[Table]) -> Iterator[str]:
    """What a folder of results has of a method: figures, then what they cost."""
    sections = [(tables, rows) for tables in by_section(found) if (rows := _rows_of(name, tables))]
    if not sections:
        return
    yield f"## Figures: {title}"
    for tables, rows in sections:
        place = tables[0].place
        scope = f", scope {code(place.scope)}" if place.scope else ""
        how = f"protocol {code(place.protocol)}{scope}{plain(place.images)}"
        yield f"Task {code(place.task)}, {how}, first metric in percent:"
        yield _figures(name, tables, rows)
    yield (
        "Mean and standard deviation over calibration draws, in brackets the rank among those of the same "
        "table (methods that nothing tells apart share one; `~`: some by 95 % intervals that do not meet, "
        f"`-`: not known); seconds, memory and size are those at {EXAMPLE_BITS}."
    )


def _rows_of(name: str, tables: Sequence[Table]) -> dict[str, dict[Place, Row]]:
    """The method's rows by label: its variants, and what it is put on, are rows of their own."""
    found: dict[str, dict[Place, Row]] = {}
    for table in tables:
        for row in table.ranked:
            if row.record.spec.method.name == name:
                found.setdefault(row.label, {})[table.place] = row
    return dict(sorted(found.items()))


def _figures(name: str, tables: Sequence[Table], found: dict[str, dict[Place, Row]]) -> str:
    """A line per model and row; the rows' names only where there is another than the method's."""
    named = list(found) != [name]
    lines = []
    for model, own in groupby(tables, key=lambda table: table.place.model):
        here = {table.place.bits: table for table in own}
        full = next((t.reference for t in here.values() if t.reference), None)
        for label, rows in found.items():
            cells = [_cell(here.get(bits), rows) for bits in COMMON_BITS]
            if not any(cells):
                continue
            cost = rows.get(here[EXAMPLE_BITS].place) if EXAMPLE_BITS in here else None
            head = [plain(model), *([plain(label)] if named else [])]
            lines.append([*head, _percent(full.value if full else None), *cells, *_cost(cost)])
    columns = ["model", *(["row"] if named else []), "fp32", *COMMON_BITS, "s", "MB", "size"]
    return _table(columns, lines)


def _cell(table: Table | None, rows: dict[Place, Row]) -> str:
    row = rows.get(table.place) if table is not None else None
    if table is None or row is None or row.standing is None:
        return ""
    spread = f" ± {row.deviation:.1f}" if row.deviation is not None else ""
    rank = "-" if row.standing.rank is None else f"{row.standing.rank} of {len(table.ranked)}"
    sign = "" if row.standing.rank is None else SIGNS[row.standing.basis]
    return f"{_percent(row.value)}{spread} ({rank}{sign})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _cost(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    numbers = (
        (row.seconds, "{:.0f}"),
        (row.mean(lambda record: record.peak_memory_mb), "{:.0f}"),
        (row.mean(lambda record: record.size_mb), "{:.2f}"),
    )
    return ["" if value is None else form.format(value) for value, form in numbers]


def _published(name: str) -> Iterator[str]:
    """What papers report of the method, for its own models."""
    paper = name.removesuffix(RELEASED)
    own = [one for one in figures() if one.method == paper and one.metric]
    if not own:
        return
    sources = _numbers(own)
    yield "## What papers report"
    yield (
        "The authors' values, and those of others who ran the method, on the data sets named, "
        "which are not those of the figures above. Classes in italics do not compare "
        "([published figures](../published.md)). Numbers in brackets are sources."
    )
    keys = sorted({(one.dataset, one.short, one.metric) for one in own})
    rows = []
    for key in keys:
        here = [one for one in own if (one.dataset, one.short, one.metric) == key]
        rows.append([*map(plain, key), *(_values_at(here, bits, sources) for bits in COMMON_BITS)])
    yield _table(["data", "model", "metric", *COMMON_BITS], [row for row in rows if any(row[3:])])
    yield "\n".join(f"{number}. {own_words(source)}" for source, number in sources.items())


def _numbers(own: Sequence[Published]) -> dict[str, int]:
    shown = [one for one in own if one.bits in COMMON_BITS]
    return {source: number for number, source in enumerate(sorted({o.source for o in shown}), 1)}


def _values_at(here: Sequence[Published], bits: str, sources: dict[str, int]) -> str:
    """Each value once, best first, with its classes and sources."""
    found = [one for one in here if one.bits == bits]
    texts = []
    for (value, classes), same in groupby(
        sorted(found, key=lambda one: (-one.value, one.classes)),
        lambda one: (one.value, one.classes),
    ):
        why = f" *{', '.join(classes)}*" if classes else ""
        marks = ", ".join(str(number) for number in sorted({sources[one.source] for one in same}))
        texts.append(f"{value:.2f}{why} [{marks}]")
    return "; ".join(texts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
