"""Figures that pages name as means over draws are those of the checked-in results."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ("results", "results/imagenet-sample")
CELL = (
    "model",
    "method",
    "variant",
    "bits",
    "protocol",
    "scope",
    "calibration_images",
    "calibration_source",
)
FIGURE = re.compile(r"(\d+\.\d)\s±\s(\d+\.\d)")

OTHERS = ("docs/mixed_precision.md", "docs/data_free.md")


def pages() -> list[Path]:
    return [
        p
        for p in [*sorted((ROOT / "docs/methods").glob("*.md")), *(ROOT / name for name in OTHERS)]
        if FIGURE.search(p.read_text("utf-8"))
    ]


@pytest.fixture(scope="module")
def draws() -> dict[tuple[str, str], set[str]]:
    """Mean and standard deviation of a cell's draws, as they are written -> methods that have such a cell."""
    cells = defaultdict(list)
    for folder in RESULTS:
        with (ROOT / folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["status"] == "ok":
                    cells[tuple(row.get(name) for name in CELL)].append(float(row["value"]))
    found = defaultdict(set)
    for cell, values in cells.items():
        if len(values) > 1:
            found[f"{mean(values):.1f}", f"{stdev(values):.1f}"].add(cell[CELL.index("method")])
    return found


def figures(page: Path) -> Iterator[tuple[re.Match[str], set[str]]]:
    """The figures of a page, each with the methods that it can be of.

    On a method's page that is it, or one that the paragraph names; elsewhere one that the page names.
    """
    text = page.read_text("utf-8").replace("```", "")
    of_method = page.parent.name == "methods"
    for part in text.split("\n\n") if of_method else [text]:
        named = {word for code in re.findall(r"`([^`]+)`", part) for word in code.split()}
        for found in FIGURE.finditer(part):
            yield found, named | {page.stem} if of_method else named


def test_pages_have_figures():
    assert len(pages()) > 10


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_means_over_draws_are_those_of_the_results(page, draws):
    strange = [
        found[0]
        for found, methods in figures(page)
        if methods.isdisjoint(draws.get(found.groups(), ()))
    ]
    assert not strange, (
        f"{page.name}: no cell of {', '.join(RESULTS)}, of the page's method or of one that the paragraph "
        f"names, has {', '.join(strange)}"
    )
