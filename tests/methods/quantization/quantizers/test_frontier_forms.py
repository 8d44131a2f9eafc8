"""Forms of I&S-ViT, DopQ-ViT and IGQ-ViT: formulas in numpy, levels, and what can be wrong."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.model.layers import QuantLinear
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.instance_groups import InstanceGroupQuantizer
from vit_ptq_bench.methods.quantization.quantizers.shift_uniform_log import (
    ShiftUniformLogQuantizer,
)
from vit_ptq_bench.methods.quantization.quantizers.tangent import TangentQuantizer

GENERATOR = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 2, 9, 9, generator=GENERATOR).mul(3).softmax(-1)


def _site(quantizer):
    return Site(quantizer.site, "attention", quantizer, QuantLinear)


@pytest.mark.parametrize("bits", [3, 4])
def test_shift_uniform_log2_is_its_formula(bits):
    quantizer = ShiftUniformLogQuantizer(TensorSpec(bits, scheme="shift-uniform-log2"), "a")
    parts.shift_rule(parts.minmax_rule)(_site(quantizer), MAPS)
    a, eta = MAPS.double().numpy(), float(quantizer.eta)
    logarithm = -np.log2(a + eta)
    step = (logarithm.max() - logarithm.min()) / (2**bits - 1)
    zero = np.round(-logarithm.min() / step)
    codes = np.clip(np.round(logarithm / step) + zero, 0, 2**bits - 1)
    wanted = 2.0 ** np.round(-step * (codes - zero)) - eta
    found = quantizer.fake_quantize(MAPS)
    assert (
        np.abs(found.numpy() - wanted) < 1e-5
    ).mean() > 0.99  # float32 may round a tie the other way
    assert len(found.unique()) <= 2**bits and quantizer.problem() is None
    errors = []
    for shift in (0.001, eta, 1.0):
        quantizer.set_shifted_range(MAPS.amin()[None], MAPS.amax()[None], shift)
        errors.append(float((quantizer.fake_quantize(MAPS) - MAPS).square().sum()))
    assert errors[1] == min(errors)
    quantizer.eta = -quantizer.eta
    assert "positive" in quantizer.problem()


def test_a_constant_map_and_zeros_are_finite():
    for form in (ShiftUniformLogQuantizer, TangentQuantizer):
        quantizer = form(TensorSpec(4), "a")
        quantizer.set_range(torch.full((1,), 0.25), torch.full((1,), 0.25))
        assert torch.isfinite(quantizer.fake_quantize(torch.tensor([0.0, 0.25, 1.0]))).all()
        assert quantizer.problem() is None


def test_tangent_levels_are_finer_at_both_ends_and_uniform_at_small_angles():
    quantizer = TangentQuantizer(TensorSpec(4), "a")
    quantizer.set_levels(torch.full((1,), 0.8), torch.full((1,), 1.4))
    x = torch.linspace(0, 1, 100_001)
    levels = quantizer.fake_quantize(x).unique().double().numpy()
    u = np.arange(16) / 15
    wanted = 0.4 * (1 + np.arctan((2 * u - 1) * np.tan(1.4)) / 1.4)
    np.testing.assert_allclose(levels, wanted, atol=1e-6)
    gaps = np.diff(levels)
    assert gaps[0] < gaps[3] < gaps[7] and gaps[-1] < gaps[7]
    quantizer.set_levels(torch.ones(1), torch.full((1,), 0.01))
    uniform = (x * 15).round() / 15
    away = (
        quantizer.fake_quantize(x) - uniform
    ).abs() > 1e-3  # but for values half-way between levels
    assert float(away.float().mean()) < 1e-3
    quantizer.angle = torch.full((1,), 1.6)
    assert "angle" in quantizer.problem()


@pytest.mark.parametrize("scheme", ["instance-channel-groups", "instance-token-groups"])
def test_instances_choose_their_groups_and_values_the_nearest_level(scheme):
    quantizer = InstanceGroupQuantizer(TensorSpec(4, scheme=scheme), "x")
    sizes = torch.tensor([1.0, 10.0, 100.0]).repeat(4)
    x = torch.randn(3, 20, 12, generator=GENERATOR)
    x = x * sizes if scheme == "instance-channel-groups" else x.transpose(1, 2) * sizes[:, None]
    parts.group_rule(3, parts.minmax_rule)(_site(quantizer), x)
    assert len(quantizer.scale) == 3 and quantizer.problem() is None
    found = quantizer.fake_quantize(x)
    # In the order of its size: each of the three has a step of its own.
    errors = (found - x).abs().amax(1 if scheme == "instance-channel-groups" else 2).amax(0)
    assert (errors < 1.5 * sizes).all()
    for instance in range(3):
        low, high = quantizer.ranges(x[instance : instance + 1])
        distance = (low[..., None] - quantizer.low) ** 2 + (high[..., None] - quantizer.high) ** 2
        group = distance.argmin(-1)
        scale, zero = quantizer.scale[group], quantizer.zero_point[group]
        codes = ((x[instance : instance + 1] / scale).round() + zero).clamp(0, 15)
        torch.testing.assert_close(found[instance : instance + 1], (codes - zero) * scale)


def test_one_group_is_the_uniform_quantizer():
    x = torch.randn(2, 5, 6, generator=GENERATOR)
    quantizer = InstanceGroupQuantizer(TensorSpec(3, scheme="instance-channel-groups"), "x")
    quantizer.set_range(x.amin()[None], x.amax()[None])
    step = (x.max() - x.min()) / 7
    zero = (-x.min() / step).round()
    wanted = ((x / step).round() + zero).clamp(0, 7).sub(zero) * step
    torch.testing.assert_close(quantizer.fake_quantize(x), wanted)
    quantizer.low = torch.zeros(2)
    assert "lower centres" in quantizer.problem()
