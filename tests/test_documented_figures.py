"""Figures that pages name as means over draws are those of the checked-in results."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
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
def draws() -> set[tuple[str, str]]:
    """Mean and standard deviation of the draws of each cell, as they are written."""
    cells = defaultdict(list)
    for folder in RESULTS:
        with (ROOT / folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["status"] == "ok":
                    cells[tuple(row.get(name) for name in CELL)].append(float(row["value"]))
    several = [values for values in cells.values() if len(values) > 1]
    return {(f"{mean(values):.1f}", f"{stdev(values):.1f}") for values in several}


def test_pages_have_figures():
    assert len(pages()) > 10


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_means_over_draws_are_those_of_the_results(page, draws):
    strange = [
        found[0]
        for found in FIGURE.finditer(page.read_text("utf-8"))
        if found.groups() not in draws
    ]
    assert not strange, f"{page.name}: no cell of {', '.join(RESULTS)} has {', '.join(strange)}"
