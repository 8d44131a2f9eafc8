"""The tables of a folder as LaTeX, ready for a paper: methods down, models and bit widths across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from vit_ptq_bench.bench.report.classes import CLASSES
from vit_ptq_bench.bench.report.summary import overall
from vit_ptq_bench.bench.report.tables import Place, Row, Table, by_section

HEAD = """\
% Made by `bench leaderboard --format latex`. Needs \\usepackage{booktabs}.
% Bold: the best of a column and all that no paired test tells from it (Holm, 5 %)."""

DAGGER = r"\textsuperscript{\dag}"
"""Behind the name of a method that does not compare."""

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the beginning of a row it would belong to the end of the one before
    "]": "{]}",
    "*": "{*}",
}

NOTHING = "--"
"""Where a method has no result."""


def render_latex(found: Sequence[Table]) -> str:
    """Return one ``table`` environment per task, protocol and scope; a comment where there is nothing."""
    parts = [HEAD]
    for section in by_section(found):
        tables = [table for table in section if table.ranked]
        if tables:
            parts.append(_environment(tables, _label(tables[0].place)))
    if len(parts) == 1:
        parts.append("% There are no results.")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return a text that LaTeX sets as it is, in one line."""
    return "".join(ESCAPES.get(sign, sign) for sign in " ".join(text.split()))


def _label(place: Place) -> str:
    words = (
        place.task,
        place.protocol,
        place.scope,
        "" if place.limit is None else str(place.limit),
        place.source.replace(" ", "-"),
    )
    return "-".join(filter(None, words))


def _environment(tables: Sequence[Table], label: str) -> str:
    columns = "r" * len(tables)
    body = [
        r"\begin{table}[t]",
        r"\centering",
        f"\\caption{{{_caption(tables)}}}",
        f"\\label{{tab:{escaped(label)}}}",
        f"\\begin{{tabular}}{{@{{}}l{columns}@{{}}}}",
        r"\toprule",
        *_head(tables),
        r"\midrule",
        *_rows(tables),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(body)


def _caption(tables: Sequence[Table]) -> str:
    place, metric = tables[0].place, tables[0].metric
    scope = f", scope {place.scope}" if place.scope else ""
    part = "" if place.limit is None else f", {place.limit} images"
    text = escaped(
        f"{place.task}{part}, protocol {place.protocol}{scope}{place.images}: {metric}, %"
    )
    classes = {name for table in tables for row in table.ranked for name in row.classes}
    words = "; ".join(why for name, why in CLASSES.items() if name in classes)
    marked = f" {DAGGER}: does not compare: {escaped(words)}." if words else ""
    spread = "of several seeds mean and standard deviation; in brackets the 95\\,\\% interval"
    return f"{text}; {spread}.{marked}"


def _head(tables: Sequence[Table]) -> Iterator[str]:
    """Models over their bit widths."""
    cells, rules, column = [], [], 2
    for model, group in groupby(tables, key=lambda table: table.place.model):
        width = len(list(group))
        cells.append(f"\\multicolumn{{{width}}}{{c}}{{{escaped(model)}}}")
        rules.append(f"\\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    yield " & ".join(["", *cells]) + r" \\"
    yield "".join(rules)
    yield " & ".join(["method", *(table.place.bits for table in tables)]) + r" \\"


def _rows(tables: Sequence[Table]) -> Iterator[str]:
    """Full precision, then the methods, best first over all columns."""
    references = [table.reference for table in tables]
    if any(row is not None and row.value is not None for row in references):
        values = [NOTHING if r is None or r.value is None else f"{r.value:.1f}" for r in references]
        yield " & ".join(["full precision", *values]) + r" \\"
        yield r"\midrule"
    placed = [one.label for one in overall(tables)]
    labels = dict.fromkeys([*placed, *(row.label for table in tables for row in table.ranked)])
    marked = {row.label for table in tables for row in table.ranked if row.classes}
    for label in labels:
        cells = [
            _cell(next((r for r in table.ranked if r.label == label), None), table)
            for table in tables
        ]
        name = escaped(label) + (DAGGER if label in marked else "")
        yield " & ".join([name, *cells]) + r" \\"


def _cell(row: Row | None, table: Table) -> str:
    if row is None or row.value is None or row.standing is None:
        return NOTHING
    figure = f"{row.value:.1f}"
    standing = row.standing
    if standing.like_best and standing.tested and not row.classes and len(table.ranked) > 1:
        figure = f"\\textbf{{{figure}}}"
    if row.deviation is not None:
        figure = f"{figure}\\,$\\pm$\\,{row.deviation:.1f}"
    if row.interval is None:
        return figure
    return f"{figure} {{\\tiny [{row.interval[0]:.1f}, {row.interval[1]:.1f}]}}"
