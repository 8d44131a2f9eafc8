"""Integer types of uniform grids: the values are the quantizer's own, whatever the zero points are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.deployment.integers import (
    HIGHEST,
    IntegerGrid,
    integer_grid,
)
from vit_ptq_bench.methods.quantization.deployment.operators import quantize_dequantize
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer

TYPES = ("uint4", "uint8", "uint16")


def uniform(bits, zeros, symmetric=False):
    quantizer = build_quantizer(TensorSpec(bits, "channel", symmetric=symmetric), "site", -1)
    zeros = torch.tensor(zeros)
    quantizer.set_parameters(torch.linspace(0.1, 0.2, len(zeros)), zeros)
    return quantizer


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    zeros=st.lists(st.integers(-300, 300), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_the_operators_give_the_quantizers_values(bits, symmetric, zeros, seed):
    quantizer = uniform(bits, [0, 0, 0] if symmetric else zeros, symmetric)
    grid = integer_grid(quantizer, TYPES)
    assert isinstance(grid, IntegerGrid)
    assert 0 <= grid.low < grid.high <= HIGHEST[grid.integers]
    assert int(grid.zero_point.min()) >= 0 and int(grid.zero_point.max()) <= HIGHEST[grid.integers]
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) * 40
    ends = (grid.low, grid.high)
    found = quantize_dequantize(x, grid.scale, grid.zero_point, 1, ends, grid.integers, grid.clips)
    # A tie may fall to the other side by a product with the reciprocal: that is a step, and rare.
    same = torch.isclose(found, quantizer.fake_quantize(x), rtol=1e-6, atol=1e-7)
    assert same.float().mean() > 0.98


@pytest.mark.parametrize(
    ("bits", "zeros", "symmetric", "integers", "clips"),
    [
        (4, [0, 7, 15], False, "uint4", False),
        (4, [0, 7, 16], False, "uint8", True),
        (4, [-3, 0, 3], False, "uint8", True),
        (3, [0, 1, 7], False, "uint4", True),
        (4, [0, 0, 0], True, "uint4", False),
        (8, [0, 0, 0], True, "uint8", False),
        (8, [0, 100, 300], False, "uint16", True),
    ],
)
def test_the_narrowest_type_is_taken(bits, zeros, symmetric, integers, clips):
    grid = integer_grid(uniform(bits, zeros, symmetric), TYPES)
    assert (grid.integers, grid.clips) == (integers, clips)


def test_what_has_no_operator_says_why():
    found = {integer_grid(uniform(8, [0, 0, far]), ("uint4", "uint8")) for far in (-9, 300, 301)}
    assert found == {
        "its zero points do not fit uint8; the nearest with an operator: a range that holds 0"
    }
    released = uniform(4, [0.0, 1.0, 2.0])
    released.set_parameters(released.scale, torch.tensor([0.5, 1.0, 2.0]))
    assert "no whole numbers" in integer_grid(released, TYPES)
    dynamic = build_quantizer(TensorSpec(8, "token", dynamic=True), "site", -1)
    assert "static, per tensor" in integer_grid(dynamic, TYPES)
    log = build_quantizer(TensorSpec(4, scheme="log-sqrt2"), "site", 1)
    assert "'log-sqrt2' has no operator; the nearest that has one: 'uniform'" in integer_grid(
        log, TYPES
    )
