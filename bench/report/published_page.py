"""The page of what papers report: the best of each model and bit width, and what nobody has measured here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tabulate import tabulate

from vit_ptq_bench.bench.report.classes import CLASSES
from vit_ptq_bench.bench.report.published import (
    EVALUATION_SETS,
    FULL_PRECISION,
    Published,
    dataset_of,
    figures,
)
from vit_ptq_bench.bench.report.tables import Row, Table
from vit_ptq_bench.bench.report.text import code, own_words, plain

NAMED = 3
"""Methods of each cell that are named."""

ABOUT = """\
# Published figures

What papers and official READMEs report, {figures} figures with their sources
(`bench/published/published.csv`). Per model and bit width: the best of those that compare, the best of those
that do not, with the reason, and what has been measured with this benchmark on the same images. Papers differ
in calibration images, checkpoints and full precision; where one method has several values its best stands
here, and `bench leaderboard` shows the whole range beside a measured figure. Numbers in brackets are sources,
at the end.

{measured} of {cells} cells have been measured here.

## Contribute a measurement

With ImageNet or COCO and a GPU, any cell takes three commands:

    bench run imagenet --data-dir DIR --device cuda:0 --models 'deit_small*' --output contributed
    bench check contributed
    bench leaderboard --results contributed

The second says whether the records can be merged ([contributing.md](contributing.md)); send them as a pull
request."""

Cell = tuple[str, str, str, str]
"""Data set, model as sources write it, bits, metric."""


def render_published(found: Sequence[Table]) -> str:
    """Return the page.

    Args:
        found: the tables of what has been measured; those on other data say nothing here.
    """
    known = [one for one in figures() if one.metric in ("top1", "box_ap") and one.short]
    numbers = {source: number for number, source in enumerate(sources(known), 1)}
    measured = best_measured(found)
    cells = {_cell(one) for one in known if one.bits != FULL_PRECISION}
    done = sum(
        (dataset, _our_name(known, short), bits) in measured for dataset, short, bits, _ in cells
    )
    text = [ABOUT.format(figures=len(figures()), measured=done, cells=len(cells))]
    for dataset, of_set in groupby(sorted(known, key=_order), key=lambda one: one.dataset):
        text.append(f"## {dataset}")
        for short, own in groupby(of_set, key=lambda one: one.short):
            text.append(f"### {plain(short)}")
            text.append(_model_table(list(own), numbers, measured))
    text.append("## What does not compare\n\n" + _classes())
    text.append("## Sources\n\n" + "\n".join(f"{n}. {own_words(s)}" for s, n in numbers.items()))
    return "\n\n".join(text) + "\n"


def sources(known: Sequence[Published]) -> list[str]:
    """Return the sources of figures, each once, by the alphabet."""
    return sorted({one.source for one in known})


def best_measured(found: Sequence[Table]) -> dict[tuple[str, str, str], Row]:
    """Return (data set, model, bits) -> our best row that compares, on that data set under ``equal``."""
    result: dict[tuple[str, str, str], Row] = {}
    for table in found:
        dataset = dataset_of(table)
        if not dataset or table.place.protocol != "equal":
            continue
        key = (dataset, table.place.model.partition(".")[0], table.place.bits)
        compared = [row for row in table.ranked if not row.classes]
        best = max(
            (*compared, *filter(None, [result.get(key)])),
            key=lambda row: row.value or 0,
            default=None,
        )
        if best is not None:
            result[key] = best
    return result


def _cell(one: Published) -> Cell:
    return one.dataset, one.short, one.bits, one.metric


def _order(one: Published) -> tuple[bool, str, int, int]:
    """ImageNet before COCO, models by name, most bits first."""
    weights, _, activations = one.bits[1:].partition("A")
    return (
        one.dataset != EVALUATION_SETS["imagenet", 50_000],
        one.short,
        -int(weights),
        -int(activations),
    )


def _our_name(known: Sequence[Published], short: str) -> str:
    return next(one.model for one in known if one.short == short)


def _model_table(
    own: Sequence[Published], numbers: dict[str, int], measured: dict[tuple[str, str, str], Row]
) -> str:
    rows = []
    for bits, group in groupby(own, key=lambda one: one.bits):
        here = list(group)
        comparable = [one for one in here if not one.classes]
        others = [one for one in here if one.classes]
        row = measured.get((here[0].dataset, here[0].model, bits))
        if bits == FULL_PRECISION:
            values = [one.value for one in comparable]
            extent = (
                f"{min(values):.2f} to {max(values):.2f}"
                if len(set(values)) > 1
                else f"{values[0]:.2f}"
            )
            rows.append(["full precision", extent, "", ""])
        else:
            rows.append([bits, _named(comparable, numbers), _named(others, numbers, 1), _ours(row)])
    return tabulate(
        rows,
        ["bits", "best published, %", "best that does not compare, %", "measured here, %"],
        tablefmt="github",
        disable_numparse=True,
    )


def _named(found: Sequence[Published], numbers: dict[str, int], count: int = NAMED) -> str:
    """The best methods, each with its best value."""
    best: dict[str, Published] = {}
    for one in sorted(found, key=lambda one: (-one.value, one.written, one.source)):
        best.setdefault(one.known_as, one)
    return ", ".join(_words(one, numbers) for one in list(best.values())[:count])


def _words(one: Published, numbers: dict[str, int]) -> str:
    why = f" ({', '.join(one.classes)})" if one.classes else ""
    return f"{plain(one.written)} {one.value:.2f}{why} [{numbers[one.source]}]"


def _ours(row: Row | None) -> str:
    return "" if row is None else f"{code(row.label)} {row.value:.2f}"


def _classes() -> str:
    return "\n".join(f"- `{name}`: {why}" for name, why in CLASSES.items())
