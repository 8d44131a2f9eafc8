"""Values of two codes: against arithmetic on integers, in files, and multiplied without both remainders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.model.layers import QuantLinear
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer


def quantizer(bits: int, remainder: int, symmetric: bool = False, granularity: str = "tensor"):
    spec = TensorSpec(
        bits, granularity, symmetric=symmetric, scheme=f"uniform-remainder-{remainder}"
    )
    return build_quantizer(spec, "site", 0)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(8, 4), (6, 3), (8, 2), (4, 2)]), st.booleans(), st.integers(0, 10**6))
def test_values_are_those_of_both_codes(bits, symmetric, seed) -> None:
    stored, remainder = bits
    x = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3
    one = quantizer(stored, remainder, symmetric)
    one.set_range(x.min().reshape(1) * 0.8, x.max().reshape(1) * 0.8)
    scale, zero = float(one.scale), int(one.zero_point)
    b = stored - remainder
    low, high = (-(2 ** (b - 1)), 2 ** (b - 1) - 1) if symmetric else (0, 2**b - 1)
    u = np.clip((x / one.scale).numpy(), low - zero, high - zero)
    q = np.round(u) + zero
    most = 2 ** (remainder - 1) - 1
    r = np.clip(np.round((2**remainder - 1) * (u - np.round(u))), -most, most)
    expected = scale * (q - zero + r / (2**remainder - 1))
    np.testing.assert_allclose(one.fake_quantize(x).numpy(), expected, rtol=1e-5, atol=1e-5 * scale)
    codes = one.quantize(x)
    assert low <= q.min() and q.max() <= high
    assert int(codes.min()) >= 0 and int(codes.max()) < 2**stored
    torch.testing.assert_close(one.dequantize(codes), one.fake_quantize(x), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        one.low_order(one.fake_quantize(x)),
        torch.tensor(scale * r / (2**remainder - 1), dtype=torch.float32),
        rtol=1e-4,
        atol=1e-5 * scale,
    )


def test_the_remainder_takes_most_of_the_error_away() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    plain = build_quantizer(TensorSpec(4), "site")
    two = quantizer(8, 4)
    for one in (plain, two):
        one.set_range(x.min().reshape(1), x.max().reshape(1))
    assert torch.equal(plain.scale, two.scale)
    errors = [(one.fake_quantize(x) - x).square().mean() for one in (plain, two)]
    assert errors[1] < errors[0] / 50  # 225 but for the ends, which a whole zero point clips


def test_a_layer_leaves_the_product_of_both_remainders_out() -> None:
    table = equal_table(BitWidth(4, 4))
    for key in ("fc1.weight", "fc1.input"):
        table = table.change(f"{key}@layer", bits=8, scheme="uniform-remainder-4")
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(6, 5)
    layer = QuantLinear(linear, "layer", "fc1", table)
    x = torch.randn(7, 6, generator=generator)
    layer.input_quantizer.set_range(x.min().reshape(1), x.max().reshape(1))
    low, high = torch.aminmax(linear.weight.detach(), dim=1)
    layer.weight_quantizer.set_range(low, high)
    for own in (layer.input_quantizer, layer.weight_quantizer):
        own.active = True
    with torch.no_grad():
        first = layer.input_quantizer.fake_quantize(x)
        second = layer.weight_quantizer.fake_quantize(linear.weight)
        rests = layer.input_quantizer.low_order(first), layer.weight_quantizer.low_order(second)
        expected = (
            (first - rests[0]) @ (second - rests[1]).T
            + (first - rests[0]) @ rests[1].T
            + rests[0] @ (second - rests[1]).T
            + linear.bias
        )
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layer(x), first @ second.T + linear.bias, rtol=1e-5, atol=1e-5)
        before = layer(x)
        layer.freeze()
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
        layer.input_quantizer.active = False  # then nothing is left out
        torch.testing.assert_close(layer(x), x @ second.T + linear.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits, remainder", [(5, 4), (3, 2)])
def test_too_few_bits_are_refused(bits: int, remainder: int) -> None:
    with pytest.raises(MethodError, match=f"at least {remainder + 2} bits"):
        quantizer(bits, remainder)


def test_a_dynamic_range_is_refused() -> None:
    spec = TensorSpec(8, "token", dynamic=True, scheme="uniform-remainder-4")
    with pytest.raises(MethodError, match="static"):
        build_quantizer(spec, "site")
