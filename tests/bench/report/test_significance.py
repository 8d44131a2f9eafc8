"""Tests of results on the same images, against enumeration and against other implementations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_ptq_bench.bench.report.significance import holm, mcnemar, pooled, sign_flip

TERMS = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@given(TERMS)
def test_flipped_signs_are_all_sums_of_tossed_terms(terms: list[int]) -> None:
    sums = [
        sum(sign * abs(term) for sign, term in zip(signs, terms, strict=True))
        for signs in product((-1, 1), repeat=len(terms))
    ]
    extreme = np.mean([abs(one) >= abs(sum(terms)) for one in sums])
    assert sign_flip(np.array(terms)) == pytest.approx(extreme)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_of_one_seed_each_it_is_mcnemars_test(seed: int, n: int) -> None:
    numbers = np.random.default_rng(seed)
    first, second = numbers.random((2, n)) < [[0.7], [0.6]]
    assert pooled([first], [second]) == pytest.approx(mcnemar(first, second), abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_the_same_seeds_once_more_tell_nothing_new(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    first, second = numbers.random((2, 3, 100)) < 0.5
    once = pooled(list(first), list(second))
    assert pooled([*first, *first], list(second)) == pytest.approx(once)
    assert pooled(list(second), list(first)) == pytest.approx(once)
    assert pooled(list(first), list(first)) == 1.0


def test_nothing_apart_is_not_significant_where_it_is_true() -> None:
    """Three seeds share what is hard about an image; counting each apart would reject more often."""
    numbers = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        hard = numbers.random((2, 200)) < 0.5
        first, second = (one[None] ^ (numbers.random((3, 200)) < 0.05) for one in hard)
        rejected += pooled(list(first), list(second)) < 0.05
    assert rejected <= 32  # 20 expected, and 3 deviations of 4.4


def test_holm_is_the_step_down_of_bonferroni() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_many_images_take_no_time() -> None:
    numbers = np.random.default_rng(1)
    first, second = numbers.random((2, 3, 50_000)) < [[[0.701]], [[0.70]]]
    assert 0 < pooled(list(first), list(second)) < 1
