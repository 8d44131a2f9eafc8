"""Widths within a budget against trying all of them."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.allocation.knapsack import Item, best_widths

WIDTHS = (2, 3, 4, 6, 8)

errors = st.lists(
    st.floats(0, 100, allow_subnormal=False), min_size=len(WIDTHS), max_size=len(WIDTHS)
)
items = st.lists(
    st.builds(
        lambda size, values: Item(size, dict(zip(WIDTHS, values, strict=True))),
        st.integers(1, 50),
        errors,
    ),
    min_size=1,
    max_size=4,
)


def _all(items, mean_bits):
    """The least error of all choices within the budget."""
    budget = mean_bits * sum(item.size for item in items)
    found = []
    for widths in itertools.product(WIDTHS, repeat=len(items)):
        if sum(item.size * bits for item, bits in zip(items, widths, strict=True)) <= budget:
            found.append(sum(item.errors[bits] for item, bits in zip(items, widths, strict=True)))
    return min(found)


@settings(deadline=None)
@given(items=items, mean_bits=st.sampled_from([2, 2.5, 3, 4, 5.25, 8]))
def test_no_choice_within_the_budget_loses_less(items, mean_bits):
    widths = best_widths(items, mean_bits)
    pairs = list(zip(items, widths, strict=True))
    assert sum(item.size * bits for item, bits in pairs) <= mean_bits * sum(i.size for i in items)
    assert sum(item.errors[bits] for item, bits in pairs) == pytest.approx(_all(items, mean_bits))


def test_one_width_is_that_width():
    layers = [Item(10, {4: 1.0}), Item(7, {4: 3.0})]
    assert best_widths(layers, 4) == [4, 4]


def test_a_transformer_of_many_layers_is_done_at_once():
    sizes = [3, 1, 4, 4] * 24
    layers = [
        Item(1000 * size + number, {bits: (number % 7 + 1) * 4.0**-bits for bits in WIDTHS})
        for number, size in enumerate(sizes)
    ]
    widths = best_widths(layers, 4)
    mean = sum(i.size * b for i, b in zip(layers, widths, strict=True)) / sum(
        i.size for i in layers
    )
    assert 3.99 < mean <= 4


def test_what_cannot_be_is_refused_in_words():
    with pytest.raises(MethodError, match=r"2\.00 bits on average; the budget of 1\.5"):
        best_widths([Item(10, dict.fromkeys(WIDTHS, 0.0))], 1.5)
    with pytest.raises(MethodError, match="not finite"):
        best_widths([Item(10, {4: float("nan")})], 4)
