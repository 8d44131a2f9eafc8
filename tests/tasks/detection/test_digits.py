import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.tasks.detection.digits import clutter_background, source_pools


def test_train_and_test_digits_are_disjoint_and_complete():
    train, test = source_pools()
    assert not set(train.indices) & set(test.indices)
    assert len(train.indices) + len(test.indices) == 1797


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(8, 90), clutter=st.floats(0, 1))
def test_clutter_is_a_function_of_the_seed(seed, size, clutter):
    first, again = (
        clutter_background(size, np.random.default_rng(seed), clutter) for _ in range(2)
    )
    assert first.shape == (size, size, 3)
    assert np.array_equal(first, again)


def test_clutter_makes_backgrounds_busier():
    plain, hard = (
        [clutter_background(32, np.random.default_rng(seed), c).std() for seed in range(50)]
        for c in (0.0, 1.0)
    )
    assert np.mean(plain) < 0.01 < 0.1 < np.mean(hard)
