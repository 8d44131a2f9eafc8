"""Identities every quantizer must have, on random tensors, against independent arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**16)
FORMS = ["uniform", "log2", "log-sqrt2", "log-sqrt2-plus-zero", "twin-softmax", "twin-gelu"]


def _sample(scheme: str, seed: int) -> torch.Tensor:
    x = torch.randn(6, 257, generator=torch.Generator().manual_seed(seed))
    if scheme.startswith(("log", "twin-softmax")):
        return (4 * x).softmax(dim=-1)
    return torch.nn.functional.gelu(x) if scheme == "twin-gelu" else x


def _calibrated(scheme: str, bits: int, x: torch.Tensor, **fields):
    quantizer = build_quantizer(TensorSpec(bits, scheme=scheme, **fields), "site", axis=0)
    low, high = torch.aminmax(x.flatten(1) if quantizer.axis == 0 else x.reshape(1, -1), dim=1)
    quantizer.set_range(low, high)
    return quantizer


@pytest.mark.parametrize("scheme", FORMS)
@settings(max_examples=25, deadline=None)
@given(bits=BITS, seed=SEEDS)
def test_idempotent_monotone_and_few_values(scheme, bits, seed):
    x = _sample(scheme, seed)
    quantizer = _calibrated(scheme, bits, x)
    once = quantizer.fake_quantize(x)
    torch.testing.assert_close(quantizer.fake_quantize(once), once, rtol=0, atol=1e-6)
    order = x.flatten().argsort()
    assert (once.flatten()[order].diff() >= 0).all()
    levels = 2**bits + (scheme == "log-sqrt2-plus-zero")
    assert len(once.unique()) <= levels


@settings(max_examples=50, deadline=None)
@given(bits=BITS, seed=SEEDS, symmetric=st.booleans(), channel=st.booleans())
def test_uniform_error_is_at_most_half_a_step(bits, seed, symmetric, channel):
    x = _sample("uniform", seed)
    fields = {"symmetric": symmetric, "granularity": "channel" if channel else "tensor"}
    quantizer = _calibrated("uniform", bits, x, **fields)
    step = quantizer.scale.view(-1, 1)
    assert ((quantizer.fake_quantize(x) - x).abs() <= step * 0.5001).all()


@settings(max_examples=30, deadline=None)
@given(bits=BITS, seed=SEEDS)
def test_affine_equals_the_formula_in_numpy(bits, seed):
    x = _sample("uniform", seed)
    quantizer = _calibrated("uniform", bits, x)
    values = x.numpy().astype(np.float64)
    step = (values.max() - values.min()) / (2**bits - 1)
    zero = np.rint(-values.min() / step)
    codes = np.clip(np.rint(values / step) + zero, 0, 2**bits - 1)
    expected = step * (codes - zero)
    close = np.isclose(quantizer.fake_quantize(x).numpy(), expected, atol=1e-5)
    assert close.mean() > 0.999  # a value on the border of two cells may fall either way


def test_range_without_zero_is_covered():
    x = torch.linspace(5.0, 6.0, 100)[None]
    quantizer = _calibrated("uniform", 4, x)
    assert (quantizer.fake_quantize(x) - x).abs().max() <= quantizer.scale / 2 * 1.001


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
def test_constant_tensor_survives(value):
    x = torch.full((1, 10), value)
    assert torch.allclose(_calibrated("uniform", 4, x).fake_quantize(x), x, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(bits=BITS, seed=SEEDS, symmetric=st.booleans())
def test_codes_and_values_agree(bits, seed, symmetric):
    x = _sample("uniform", seed)
    quantizer = _calibrated("uniform", bits, x, granularity="channel", symmetric=symmetric)
    codes = quantizer.quantize(x)
    low, high = quantizer.code_range
    assert codes.min() >= low and codes.max() <= high
    # The fused operator multiplies by 1 / scale, so a value on the border of two cells may fall the
    # other way; a symmetric quantizer has the extreme value of every row on such a border.
    difference = (quantizer.dequantize(codes) - quantizer.fake_quantize(x)).abs()
    assert (difference < 1e-5).float().mean() > 0.99


@pytest.mark.parametrize("per_octave", [1, 2])
def test_log_quantizer_equals_the_shift_form(per_octave):
    scheme = {1: "log2", 2: "log-sqrt2"}[per_octave]
    x = _sample(scheme, 0)
    quantizer = _calibrated(scheme, 4, x)
    s = float(x.max())
    codes = np.rint(-per_octave * np.log2(x.numpy() / s))
    shift = np.ceil(codes / per_octave)
    odd = (codes % per_octave) != 0
    expected = np.where(codes >= 15, 0.0, s * 2.0**-shift * np.where(odd, np.sqrt(2), 1.0))
    np.testing.assert_allclose(quantizer.fake_quantize(x).numpy(), expected, rtol=1e-5)


def test_released_log_quantizer_has_one_value_more():
    x = torch.logspace(-9, 0, 5000, base=2)[None]
    x[0, 0] = 0
    honest, released = _calibrated("log-sqrt2", 3, x), _calibrated("log-sqrt2-plus-zero", 3, x)
    assert len(honest.fake_quantize(x).unique()) == 8
    assert len(released.fake_quantize(x).unique()) == 9


@pytest.mark.parametrize("bits", [6, 8])
def test_twin_softmax_is_unbiased_where_the_summed_form_is_not(bits):
    x = torch.randn(200, 197, generator=torch.Generator().manual_seed(0)).softmax(-1)
    exclusive = build_quantizer(TensorSpec(bits, scheme="twin-softmax"), "p")
    summed = build_quantizer(TensorSpec(bits, scheme="twin-softmax-summed"), "p")
    split = torch.tensor([4])
    exclusive.set_split(split)
    summed.set_split(split)
    error, summed_error = exclusive.fake_quantize(x) - x, summed.fake_quantize(x) - x
    # The mean of a softmax row is 1 / 197; the summed form adds about the split (1 / 16) to it.
    assert error.mean().abs() < 2e-4
    assert summed_error.mean() > 0.04
    assert error.square().mean() < summed_error.square().mean()


def test_twin_softmax_takes_the_nearer_grid():
    x = torch.linspace(0, 1, 2001)[None]
    quantizer = build_quantizer(TensorSpec(4, scheme="twin-softmax"), "p")
    quantizer.set_split(torch.tensor([3]))
    levels = np.unique(np.concatenate([np.arange(8) / 7 / 8, np.arange(8) / 7]))
    nearest = np.abs(x.numpy()[0][:, None] - levels).min(axis=1)
    error = (quantizer.fake_quantize(x) - x).abs().numpy()[0]
    inside = np.abs(error - nearest) < 1e-6
    assert inside[x.numpy()[0] <= 1 / 8].all()
    assert inside.mean() > 0.95


def test_twin_gelu_has_a_step_per_sign():
    x = torch.linspace(-GELU_MINIMUM, 3, 4001)[None]
    quantizer = _calibrated("twin-gelu", 4, x)
    y = quantizer.fake_quantize(x)
    assert ((y - x)[x < 0].abs() <= GELU_MINIMUM / 8 / 2 + 1e-6).all()
    assert ((y - x)[x > 0].abs() <= quantizer.scale / 2 + 1e-6).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_dynamic_quantizer_follows_each_tensor(symmetric, granularity):
    spec = TensorSpec(8, granularity, symmetric=symmetric, dynamic=True)
    quantizer = build_quantizer(spec, "x")
    quantizer.active = True
    assert quantizer.initialised
    x = torch.randn(4, 9, 32) * torch.logspace(-3, 3, 9)[:, None]
    span = (x.amax(-1) - x.amin(-1)) if granularity == "token" else (x.max() - x.min()).expand(4, 9)
    bound = span[..., None] / 255 * (1.05 if symmetric else 0.51)
    assert ((quantizer(x) - x).abs() <= bound + 1e-6).all()


def test_inactive_float_and_uncalibrated():
    x = torch.randn(3, 4)
    quantizer = build_quantizer(TensorSpec(4), "blocks.0.x")
    assert quantizer(x) is x
    quantizer.active = True
    with pytest.raises(MethodError, match=r"blocks\.0\.x.*before it was calibrated"):
        quantizer(x)
    floating = build_quantizer(TensorSpec(32), "x")
    floating.active = True
    assert floating(x) is x


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ranges_that_are_not_finite_are_refused_by_name(bad):
    for scheme in FORMS:
        with pytest.raises(MethodError, match=r"blocks\.1\.y.*NaN or infinite"):
            quantizer = build_quantizer(TensorSpec(4, scheme=scheme), "blocks.1.y")
            quantizer.set_range(torch.zeros(1), torch.tensor([bad]))


def test_gradient_passes_straight_through_inside_the_range():
    quantizer = UniformQuantizer(TensorSpec(4), "x")
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    x = torch.tensor([-3.0, -0.4, 0.3, 3.0], requires_grad=True)
    quantizer.fake_quantize(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
