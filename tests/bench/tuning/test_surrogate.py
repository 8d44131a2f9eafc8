"""The regression against explicit features, and what it learns."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from vit_ptq_bench.bench.tuning.surrogate import RIDGE, expected_best, predicted, similarity

SHAPE = (3, 2, 4, 2)
ALL = np.array(list(product(*map(range, SHAPE))), dtype=np.int64)


def features(codes: np.ndarray) -> np.ndarray:
    """One-hot values and one-hot pairs, written out."""
    columns = [codes[:, d] == v for d, size in enumerate(SHAPE) for v in range(size)]
    for first, second in combinations(range(len(SHAPE)), 2):
        for v, w in product(range(SHAPE[first]), range(SHAPE[second])):
            columns.append((codes[:, first] == v) & (codes[:, second] == w))
    found = np.stack(columns, axis=1).astype(float)
    return found / np.sqrt(len(SHAPE) * (len(SHAPE) + 1) / 2)


def test_the_similarity_is_that_of_one_hot_values_and_pairs():
    expected = features(ALL) @ features(ALL).T
    assert similarity(ALL, ALL) == pytest.approx(expected)
    assert similarity(ALL, ALL).diagonal() == pytest.approx(1)


def test_predictions_are_those_of_ridge_regression_on_the_features():
    generator = np.random.default_rng(1)
    rows = generator.choice(len(ALL), 20)  # with repetitions, as in a bootstrap
    scores = generator.normal(size=20)
    x = features(ALL[rows])
    normal = x.T @ x + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(normal, x.T @ (scores - scores.mean()))
    expected = features(ALL) @ weights + scores.mean()
    assert predicted(ALL[rows], scores, ALL) == pytest.approx(expected)


def test_the_best_of_an_additive_score_is_expected_first():
    generator = np.random.default_rng(2)
    gains = [generator.normal(size=size) for size in SHAPE]
    scores = sum(gain[ALL[:, d]] for d, gain in enumerate(gains))
    best = int(scores.argmax())
    tried = np.setdiff1d(generator.permutation(len(ALL))[:24], [best])
    left = np.setdiff1d(np.arange(len(ALL)), tried)
    chosen = expected_best(ALL[tried], scores[tried], ALL[left], np.random.default_rng(0))
    order = np.argsort(-scores[left])
    assert left[chosen] in left[order[:3]]


def test_equal_scores_are_no_trouble():
    chosen = expected_best(ALL[:5], np.ones(5), ALL[5:], np.random.default_rng(0))
    assert 0 <= chosen < len(ALL) - 5
