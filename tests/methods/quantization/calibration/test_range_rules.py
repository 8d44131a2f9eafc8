import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.range_rules import (
    best_percentile_rule,
    histogram_shrink_rule,
    minmax_rule,
    percentile_ranges,
    shrink_rule,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer


def _site(bits=4, granularity="tensor", axis=None, symmetric=False):
    quantizer = UniformQuantizer(TensorSpec(bits, granularity, symmetric), "x", axis)
    return Site("x", "qkv.input", quantizer, None)


def _heavy_tailed(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) ** 3


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 4000), groups=st.integers(1, 4), seed=st.integers(0, 999))
def test_percentiles_equal_numpy(n, groups, seed):
    x = _heavy_tailed(groups, n, seed=seed)
    fractions = [0.99, 0.999, 0.99999, 1.0]
    low, high = percentile_ranges(x, fractions)
    for i, fraction in enumerate(fractions):
        np.testing.assert_allclose(
            high[i], np.quantile(x.numpy(), fraction, axis=1), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(
            low[i], np.quantile(x.numpy(), 1 - fraction, axis=1), rtol=1e-3, atol=1e-4
        )


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(200, 20_000),
    groups=st.integers(1, 3),
    steps=st.sampled_from([2.0, 50.0, 1e6]),
    seed=st.integers(0, 999),
)
def test_tails_of_long_rows_are_those_of_a_whole_sort(n, groups, steps, seed):
    """To the bit, also where many entries are equal, and whatever the order in memory."""
    x = (_heavy_tailed(groups, n, seed=seed) * steps).round().sort(dim=1).values
    x = x[:, torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    for shown in (x, x.T.contiguous().T):
        low, high = percentile_ranges(shown, [0.9995, 1.0])
        ordered = x.sort(dim=1).values
        position = (1 - 0.9995) * (n - 1)
        first, share = int(position), position - int(position)
        assert torch.equal(low[0], torch.lerp(ordered[:, first], ordered[:, first + 1], share))
        assert torch.equal(
            high[0], torch.lerp(ordered[:, n - 1 - first], ordered[:, n - 2 - first], share)
        )
        assert torch.equal(low[1], ordered[:, 0]) and torch.equal(high[1], ordered[:, -1])


def test_minmax_covers_each_channel():
    site, x = _site(granularity="channel", axis=-1), _heavy_tailed(5, 7, 3)
    minmax_rule(site, x)
    span = x.reshape(-1, 3).max(0).values - x.reshape(-1, 3).min(0).values
    torch.testing.assert_close(site.quantizer.scale * 15, span)


def _brute_force(x, bits, factors):
    """Least squared error over shrunk ranges, straight from the definition, in float64."""
    values, best = x.double().numpy().ravel(), (np.inf, None)
    for factor in factors:
        low, high = values.min() * factor, values.max() * factor
        step = (high - low) / (2**bits - 1)
        zero = np.rint(-low / step)
        q = step * (np.clip(np.rint(values / step) + zero, 0, 2**bits - 1) - zero)
        error = ((q - values) ** 2).sum()
        best = min(best, (error, step))
    return best


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("rule", [shrink_rule, histogram_shrink_rule])
def test_shrunk_range_has_the_least_squared_error(bits, rule):
    x, site = _heavy_tailed(300, 400), _site(bits)
    rule(90, 0.01)(site, x)
    error = float((site.quantizer.fake_quantize(x) - x).double().square().sum())
    least, _ = _brute_force(x, bits, 1 - 0.01 * np.arange(90))
    assert error <= least * (1.0005 if rule is shrink_rule else 1.01)


@pytest.mark.parametrize("bits", [3, 4])
def test_best_percentile_beats_minmax_on_heavy_tails(bits):
    x, wide, tight = _heavy_tailed(100, 1000), _site(bits), _site(bits)
    minmax_rule(wide, x)
    best_percentile_rule([0.999, 0.9999, 0.99999])(tight, x)
    errors = [(s.quantizer.fake_quantize(x) - x).square().sum() for s in (wide, tight)]
    assert errors[1] < errors[0]


def test_rules_choose_every_channel_on_its_own():
    x = _heavy_tailed(6, 500)
    together, alone = _site(granularity="channel", axis=0), _site()
    shrink_rule()(together, x)
    for row in range(6):
        shrink_rule()(alone, x[row])
        torch.testing.assert_close(together.quantizer.scale[row], alone.quantizer.scale[0])


def test_projection_granularity_has_three_scales(vit):
    table = equal_table(BitWidth(4, 4)).change("qkv.weight", granularity="projection")
    operation = next(op for op in wrap_model(vit, table).operations if op.role == "qkv")
    minmax_rule(Site("w", "qkv.weight", operation.weight_quantizer, operation), operation.weight)
    assert operation.weight_quantizer.scale.shape == (3,)
    thirds = operation.weight.detach().reshape(3, -1)
    span = thirds.max(1).values - thirds.min(1).values
    torch.testing.assert_close(operation.weight_quantizer.scale * 15, span)
    codes = operation.weight_quantizer.quantize(operation.weight)
    error = operation.weight_quantizer.dequantize(codes) - operation.weight
    assert (
        error.reshape(3, -1).abs().max(1).values <= operation.weight_quantizer.scale * 0.501
    ).all()
