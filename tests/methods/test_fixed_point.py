"""Scales of least squares against independent numpy, and the factor folded into a layer's weight."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.calibration import least_squares
from vit_ptq_bench.methods.quantization.calibration.least_squares import (
    least_squares_grid,
    least_squares_rule,
)
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.rounded_scales import FixedPointQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.search.output_factors import fold_output_factors

DRAWS = {
    "gauss": lambda rng: rng.normal(size=8000),
    "laplace": lambda rng: rng.laplace(size=8000),
    "heavy": lambda rng: rng.normal(size=8000) ** 3,
    "one-sided": lambda rng: np.maximum(rng.normal(size=8000), -0.17),
}


def _codes(x, scale, zero, bits, symmetric):
    lowest = -(2 ** (bits - 1)) if symmetric else 0
    return np.clip(np.round(x / scale) + zero, lowest, lowest + 2**bits - 1)


def _error(x, scale, zero, bits, symmetric):
    return (((_codes(x, scale, zero, bits, symmetric) - zero) * scale - x) ** 2).sum()


def _searched(x, bits, symmetric):
    """Least squared error of 1000 shrunk ranges."""
    low, high = x.min(), x.max()
    errors = []
    for factor in np.geomspace(0.02, 1, 1000):
        if symmetric:
            scale, zero = max(-low, high) * factor / (2 ** (bits - 1) - 0.5), 0
        else:
            scale = (high - low) * factor / (2**bits - 1)
            zero = np.round(-low * factor / scale)
        errors.append(_error(x, scale, zero, bits, symmetric))
    return min(errors)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("name", DRAWS)
def test_the_scale_is_stationary_and_as_good_as_a_fine_search(name, bits, symmetric):
    x = DRAWS[name](np.random.default_rng(1))
    found = least_squares_grid(torch.tensor(x)[None], TensorSpec(bits, symmetric=symmetric))
    scale, zero = (float(value) for value in found)
    levels = _codes(x, scale, zero, bits, symmetric) - zero
    assert scale == pytest.approx((x * levels).sum() / (levels**2).sum(), rel=2e-3)
    assert zero == round(zero) and not (symmetric and zero)
    assert _error(x, scale, zero, bits, symmetric) <= 1.1 * _searched(x, bits, symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_rounds_and_starts_are_never_worse(symmetric):
    x = DRAWS["heavy"](np.random.default_rng(2))
    errors = []
    for rounds, starts in ((1, 1), (5, 1), (50, 1), (50, 3), (50, 6)):
        spec = TensorSpec(4, symmetric=symmetric)
        grid = least_squares_grid(torch.tensor(x)[None], spec, None, rounds, starts)
        errors.append(_error(x, *(float(value) for value in grid), 4, symmetric))
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_groups_do_not_know_of_each_other_and_counts_are_repetitions():
    rows = torch.tensor(np.random.default_rng(3).normal(size=(3, 400))) * torch.tensor(
        [[1], [9], [0]]
    )
    counts = torch.arange(1, 401).double().remainder(4).add(1)[None]
    scale, zero = least_squares_grid(rows, TensorSpec(4), rounds=7)
    for index in range(3):
        alone = least_squares_grid(rows[index : index + 1], TensorSpec(4), rounds=7)
        torch.testing.assert_close(torch.stack(alone)[:, 0], torch.stack([scale, zero])[:, index])
    counted = least_squares_grid(rows[:1], TensorSpec(4), counts)
    repeated = least_squares_grid(
        rows[:1].repeat_interleave(counts[0].long(), dim=1), TensorSpec(4)
    )
    torch.testing.assert_close(counted, repeated)


def test_a_histogram_is_exact_enough(monkeypatch):
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)) ** 3
    errors = []
    for exact in (False, True):
        monkeypatch.setattr(least_squares, "HISTOGRAM_FROM", 2**40 if exact else 2**16)
        quantizer = UniformQuantizer(TensorSpec(4), "x")
        least_squares_rule()(Site("x", "qkv.input", quantizer, None), x)
        errors.append(float((quantizer.fake_quantize(x) - x).square().sum()))
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@torch.no_grad()
def test_the_factor_is_the_projection_on_the_quantized_output(tiny, calibration):
    images = calibration.whole()
    method = METHODS.get("fixed-point").create()
    wrapped = wrap_model(tiny, method.bit_table(BitWidth(3, 3)).change("fc1.weight", bits=32))
    seen = {}
    layers = wrapped.weighted_operations()
    for layer in layers:
        layer.register_forward_hook(lambda op, x, y: seen.__setitem__(op.name, (x[0], y)))
    wrapped(images)
    calibrate_weights(wrapped, least_squares_rule())
    calibrate_activations(wrapped, calibration, least_squares_rule())
    expected, before = {}, {}
    for layer in layers:
        if layer.weight_quantizer.spec.is_float:
            continue
        x, y = seen[layer.name]
        bias = layer.compute(torch.zeros_like(x[:1]), layer.weight)
        weight = layer.weight_quantizer.fake_quantize(layer.weight)
        found = layer.compute(layer.input_quantizer.fake_quantize(x), weight) - bias
        flat, true = found.double().flatten(), (y - bias).double().flatten()
        expected[layer.name] = float((flat @ true) / (flat @ flat))
        before[layer.name] = layer.weight_quantizer.scale.clone(), weight
    factors = fold_output_factors(wrapped, calibration)
    assert factors == pytest.approx(expected, rel=1e-3) and any("fc2" in name for name in factors)
    for layer in layers:
        if layer.name in factors:
            scale, weight = before[layer.name]
            ratio = layer.weight_quantizer.scale / (scale * factors[layer.name])
            assert float((ratio - 1).abs().max()) <= 1 / 256  # m has eight bits
            rescaled = weight * (layer.weight_quantizer.scale / scale).view(
                -1, *[1] * (weight.dim() - 1)
            )
            torch.testing.assert_close(layer.weight, rescaled)
    assert not any("fc1" in name for name in factors)


@torch.no_grad()
def test_every_scale_is_a_mantissa_of_eight_bits_and_a_shift(tiny, calibration):
    for protocol in ("equal", "authors"):
        method = METHODS.get("fixed-point").create(METHODS.get("fixed-point").quick)
        quantized = method.quantize(tiny, method.bit_table(BitWidth(4, 4), protocol), calibration)
        for site in quantized.sites():
            assert isinstance(site.quantizer, FixedPointQuantizer)
            for scale in site.quantizer.scale.tolist():
                m, _ = scale.as_integer_ratio()
                assert m // (m & -m) < 256
            if protocol == "authors":
                assert site.quantizer.scale.numel() == 1 and not site.quantizer.zero_point.any()
