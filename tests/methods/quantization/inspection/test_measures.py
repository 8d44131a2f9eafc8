"""The figures of a tensor against NumPy, and what each says at its ends."""

import math

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.inspection import measures
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer

GENERATOR = np.random.default_rng(5)
UNEVEN = GENERATOR.normal(size=(6, 50)) * np.array([0.1, 1, 1, 2, 5, 20])[:, None] + 3
CHANNELS = torch.tensor(UNEVEN, dtype=torch.float32)


def test_uneven_channels_as_numpy_has_them():
    ranges = np.ptp(UNEVEN, axis=1)
    assert measures.channel_mismatch(CHANNELS) == pytest.approx(ranges.max() / ranges.mean())
    expected = ranges.mean() / (UNEVEN.max() - UNEVEN.min())
    assert measures.average_precision(CHANNELS) == pytest.approx(expected, rel=1e-5)
    expected = abs(UNEVEN.mean()) / UNEVEN.std()
    assert measures.asymmetry(CHANNELS) == pytest.approx(expected, rel=1e-5)


def test_channels_of_one_range_use_all_levels():
    rows = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.2], [0.1, 0.0, 1.0]])
    assert measures.channel_mismatch(rows) == 1
    assert measures.average_precision(rows) == 1


def test_one_channel_alone_with_a_range():
    rows = torch.zeros(4, 3)
    rows[2] = torch.tensor([0.0, 8.0, 2.0])
    assert measures.channel_mismatch(rows) == 4
    assert measures.average_precision(rows) == 0.25


def test_of_a_constant_tensor_nothing_can_be_said():
    constant = torch.full((3, 4), 2.5)
    assert measures.channel_mismatch(constant) is None
    assert measures.average_precision(constant) is None
    assert measures.asymmetry(constant) is None


def test_asymmetry_survives_a_tensor_far_from_zero():
    # 1000 and a spread of 0.01: the difference of two float32 sums of squares would be noise.
    values = (1000 + 0.01 * GENERATOR.normal(size=4000)).astype(np.float32)
    exact = values.astype(np.float64)
    expected = exact.mean() / exact.std()
    assert measures.asymmetry(torch.tensor(values)) == pytest.approx(expected, rel=1e-3)


def test_sqnr_in_decibels():
    x = torch.tensor([3.0, -4.0])
    assert measures.sqnr(x, x * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert measures.sqnr(x, x) == math.inf
    assert measures.sqnr(x * 0, x) == -math.inf


def quantizer_of(spec: TensorSpec, low: float, high: float, axis: int | None = None):
    quantizer = build_quantizer(spec, "site", axis)
    quantizer.set_range(torch.tensor([low]), torch.tensor([high]))
    return quantizer


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipped_share_is_that_of_the_codes(symmetric):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    quantizer = quantizer_of(TensorSpec(3, symmetric=symmetric), -1.0, 1.5)
    scale, zero = float(quantizer.scale), float(quantizer.zero_point)
    codes = np.round(x.numpy().astype(np.float64) / scale) + zero
    low, high = (-4, 3) if symmetric else (0, 7)
    expected = np.mean((codes < low) | (codes > high))
    assert expected > 0.05
    assert measures.clipped_share(x, quantizer) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_extreme_values_clip_nothing(bits):
    for seed in range(20):
        x = torch.randn(300, generator=torch.Generator().manual_seed(seed)) + seed / 7
        quantizer = quantizer_of(TensorSpec(bits), float(x.min()), float(x.max()))
        assert measures.clipped_share(x, quantizer) == 0


def test_a_range_per_channel_clips_by_channel():
    x = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]])
    quantizer = build_quantizer(TensorSpec(4, "channel"), "site", 0)
    quantizer.set_range(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 5.0]))
    assert measures.clipped_share(x, quantizer) == pytest.approx(1 / 6)


def test_a_dynamic_range_clips_nothing():
    quantizer = build_quantizer(TensorSpec(2, "token", dynamic=True), "site", None)
    assert measures.clipped_share(torch.randn(5, 9), quantizer) == 0


@pytest.mark.parametrize("scheme", ["log2", "log-sqrt2", "log", "adalog"])
def test_a_logarithmic_grid_reaches_half_a_step_above_its_largest_level(scheme):
    quantizer = quantizer_of(TensorSpec(4, scheme=scheme), 0.0, 0.5)
    _, high = quantizer.reach(torch.ones(1))
    top = float(quantizer.fake_quantize(torch.tensor([0.5])))
    # One more level of the same grid: of twice the scale the one that comes before the largest.
    ratio = {"log2": 2.0, "log-sqrt2": 2**0.5}.get(scheme)
    if ratio is None:
        levels = quantizer.levels()[0]
        ratio = float(levels[0] / levels[1])
    assert float(high) == pytest.approx(top * ratio**0.5, rel=1e-2)
    x = torch.tensor([0.0, 0.1, 0.5, float(high) * 1.01])
    assert measures.clipped_share(x, quantizer) == 0.25


@pytest.mark.parametrize("scheme", ["shifted-log", "offset-log", "twin-gelu"])
def test_behind_gelu_all_that_it_gives_is_reached(scheme):
    values = torch.nn.functional.gelu(torch.linspace(-8, 4, 5000))
    quantizer = quantizer_of(TensorSpec(4, scheme=scheme), -0.17, float(values.max()))
    assert measures.clipped_share(values, quantizer) == 0
    assert measures.clipped_share(values * 2, quantizer) > 0.1


def test_a_form_that_does_not_say_gives_no_share():
    quantizer = quantizer_of(TensorSpec(4, scheme="tangent"), -1.0, 1.0)
    assert measures.clipped_share(torch.randn(9), quantizer) is None
