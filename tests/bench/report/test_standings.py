"""Ranks by paired tests: against single tests, drawn image sets, and what chance does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

from vit_ptq_bench.bench.report.significance import mcnemar, pooled
from vit_ptq_bench.bench.report.standings import (
    Seen,
    Standing,
    by_outcomes,
    by_replicates,
    corrected,
    p_values,
    standings,
)

NUMBERS = np.random.default_rng(5)


def seen(
    share: float, n: int = 2000, seeds: int = 1, hard: NDArray[np.float64] | None = None
) -> Seen:
    """A row whose seeds are right on the easier images, with some noise."""
    hard = np.linspace(0, 1, n) if hard is None else hard
    outcomes = [hard + NUMBERS.normal(0, 0.05, n) < share for _ in range(seeds)]
    return Seen(100 * float(np.mean(outcomes)), outcomes)


def test_few_images_apart_are_tested_exactly_and_many_nearly_so() -> None:
    results = [NUMBERS.random((3, 400)) < share for share in (0.5, 0.52, 0.7)]
    lists = [list(seeds) for seeds in results]
    p = by_outcomes(lists)
    for first in range(3):
        for second in range(first):
            exact = pooled(lists[first], lists[second])
            assert p[first, second] == p[second, first] == pytest.approx(exact, rel=0.15)
    few = [[seeds[0][:60]] for seeds in results]
    assert by_outcomes(few)[0, 2] == pytest.approx(mcnemar(few[0][0], few[2][0]))


def test_drawn_image_sets_give_the_error_of_a_difference() -> None:
    common = NUMBERS.normal(0, 3, 200)
    replicates = np.array([60 + common + NUMBERS.normal(0, 0.5, 200) for _ in range(2)])
    p = by_replicates(replicates, np.array([60.0, 61.5]))
    difference = replicates[1] - replicates[0]
    error = difference.std(ddof=1)
    expected = ttest_1samp((difference - difference.mean()) / error * np.sqrt(200) + 1.5 / error, 0)
    assert p[0, 1] == pytest.approx(expected.pvalue, rel=1e-6)
    assert by_replicates(replicates, np.array([60.0, 60.0]))[0, 1] == 1.0
    same = by_replicates(replicates[[0, 0]], np.array([60.0, 61.0]))
    assert same[0, 1] == 0.0  # apart on every set alike


def test_rows_that_no_test_separates_from_the_best_share_the_first_rank() -> None:
    rows = [seen(0.5), seen(0.9), seen(0.905), seen(0.7, seeds=3), seen(0.9, seeds=2)]
    assert standings(rows) == [
        Standing(5, 0, True), Standing(1, 2, True), Standing(1, 2, True), Standing(4, 1, True),
        Standing(1, 2, True),
    ]  # fmt: skip


def test_a_row_without_outcomes_is_separated_from_nothing_and_says_so() -> None:
    rows = [seen(0.9), Seen(20.0), seen(0.5), seen(0.9, n=100)]
    assert [one.rank for one in standings(rows)] == [1, 1, 2, 1]
    assert [one.tested for one in standings(rows)] == [False] * 4
    assert standings([seen(0.9)]) == [Standing(1, 0, True)]
    assert standings([]) == []


def test_boxes_are_told_apart_by_replicates_alone() -> None:
    sets = NUMBERS.normal(0, 1, 100)
    rows = [
        Seen(value, None, [value + sets + NUMBERS.normal(0, 0.1, 100)])
        for value in (60.0, 61.0, 61.05)
    ]
    assert [one.rank for one in standings(rows)] == [3, 1, 1]


def test_chance_alone_hardly_ever_gives_a_second_rank() -> None:
    """Twelve equal methods, 66 pairs: without a correction nearly every table would have one."""
    separated = 0
    for _ in range(100):
        rows = [seen(0.8, n=500, hard=NUMBERS.random(500)) for _ in range(12)]
        separated += any(one.rank > 1 for one in standings(rows))
    assert separated <= 12


def test_the_correction_counts_the_pairs_that_were_tested() -> None:
    p = np.full((3, 3), np.nan)
    p[0, 1] = p[1, 0] = 0.02
    p[0, 2] = p[2, 0] = 0.03
    found = corrected(p)
    assert found[0, 1] == found[1, 0] == pytest.approx(0.04)
    assert found[0, 2] == pytest.approx(0.04)
    assert np.isnan(found[1, 2]) and np.isnan(found[0, 0])
    assert np.isnan(p_values([seen(0.5), Seen(3.0)])).all()
