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
        Standing(5, 0), Standing(1, 2, like_best=True), Standing(1, 2, like_best=True), Standing(4, 1),
        Standing(1, 2, like_best=True),
    ]  # fmt: skip


def test_a_row_that_nothing_can_be_held_against_stands_aside() -> None:
    rows = [seen(0.9), Seen(20.0), seen(0.5), seen(0.3, n=100)]
    found = standings(rows)
    assert [one.rank for one in found] == [1, None, 2, None]
    assert [one.basis for one in found] == ["tests", "nothing", "tests", "nothing"]
    assert [one.beats for one in found] == [1, 0, 0, 0]
    assert [one.rank for one in standings([Seen(20.0), Seen(10.0)])] == [None, None]
    assert standings([seen(0.9)]) == [Standing(1, 0, like_best=True)]
    assert standings([]) == []


def test_without_a_test_intervals_that_do_not_meet_tell_apart() -> None:
    """As of detectors whose older records kept no replicates: nobody is better than nobody by default."""
    sets = NUMBERS.normal(0, 1, 100)
    drawn = [
        Seen(value, None, [value + sets + NUMBERS.normal(0, 0.1, 100)], (value - 2, value + 2))
        for value in (60.0, 61.0)
    ]
    rows = [*drawn, Seen(62.5, interval=(60.5, 64.5)), Seen(50.0, interval=(48.0, 52.0))]
    found = standings(rows)
    # Of the two with replicates a test says more than their intervals, which meet.
    assert [one.rank for one in found] == [2, 1, 1, 4]
    assert [one.like_best for one in found] == [True, True, True, False]
    assert {one.basis for one in found} == {"intervals"}
    assert [one.basis for one in standings(drawn)] == ["tests", "tests"]


def test_a_rank_never_falls_going_down() -> None:
    """A row that varies much is not told apart from the best, though one above it is."""
    rows = [
        Seen(80.0, interval=(79.0, 81.0)),
        Seen(77.0, interval=(76.5, 77.5)),
        Seen(76.0, interval=(70.0, 82.0)),
        Seen(60.0, interval=(59.0, 61.0)),
    ]
    found = standings(rows)
    assert [one.rank for one in found] == [1, 2, 2, 4]
    assert [one.like_best for one in found] == [True, False, True, False]
    assert [one.rank for one in standings(rows[::-1])] == [4, 2, 2, 1]


def test_the_best_is_one_of_those_that_compare() -> None:
    rows = [
        Seen(90.0, interval=(89.0, 91.0), compares=False),
        Seen(80.0, interval=(79.0, 81.0)),
        Seen(79.5, interval=(78.5, 80.5), compares=False),
    ]
    assert [one.like_best for one in standings(rows)] == [False, True, True]


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
