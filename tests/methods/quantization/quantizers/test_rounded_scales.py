"""Scales of powers of two and of a mantissa and a shift, against exact whole numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import (
    DETECTOR_KEYS,
    INPUT_SITES,
    OPERAND_ROLES,
    ROUNDED_SCHEMES,
    WEIGHT_SITES,
    BitWidth,
    TensorSpec,
    equal_table,
)
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.rounded_scales import RoundedScaleQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized

SITES = WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES


def mantissa(scale):
    """The odd whole number m of an exact float ``m 2^e``."""
    m, _ = float(scale).as_integer_ratio()
    return m // (m & -m)


def is_allowed(scale, scheme):
    return mantissa(scale) == 1 if scheme == ROUNDED_SCHEMES[0] else mantissa(scale) < 256


def _built(scheme, bits=4, symmetric=False, **fields):
    return build_quantizer(TensorSpec(bits, symmetric=symmetric, scheme=scheme, **fields), "x")


@settings(max_examples=200, deadline=None)
@given(value=st.floats(1e-7, 1e6), bits=st.integers(2, 8))
def test_scales_are_the_nearest_that_there_are(value, bits):
    power, fixed = (_built(scheme, bits) for scheme in ROUNDED_SCHEMES)
    for quantizer in (power, fixed):
        quantizer.set_parameters(torch.tensor([value]), torch.tensor([1]))
        assert is_allowed(quantizer.scale, quantizer.spec.scheme) and quantizer.problem() is None
        before = quantizer.scale.clone()
        quantizer.set_parameters(quantizer.scale, quantizer.zero_point)
        assert torch.equal(quantizer.scale, before) and int(quantizer.zero_point) == 1
    given_scale = float(np.float32(value))
    exponents = np.arange(-30, 25)
    nearest = exponents[np.abs(np.log2(given_scale) - exponents).argmin()]
    assert float(power.scale) == pytest.approx(2.0**nearest, rel=1e-6) or (
        abs(np.log2(given_scale) % 1 - 0.5) < 1e-6
    )
    tried = [
        m * 2.0**e
        for e in range(int(np.log2(given_scale)) - 10, int(np.log2(given_scale)) - 4)
        for m in range(128, 256)
    ]
    least = min(abs(candidate - given_scale) for candidate in tried)
    assert abs(float(fixed.scale) - given_scale) == pytest.approx(least, rel=1e-4, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(-50, 50),
    width=st.floats(0.1, 50),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(ROUNDED_SCHEMES),
)
def test_the_value_of_the_range_nearest_to_zero_stays(low, width, bits, scheme):
    quantizer, plain = _built(scheme, bits), UniformQuantizer(TensorSpec(bits), "x")
    high = low + width
    for one in (quantizer, plain):
        one.set_range(torch.tensor([low]), torch.tensor([high]))
    if low <= 0 <= high:
        assert torch.equal(quantizer.zero_point, plain.zero_point)
    else:
        ends = [float(quantizer.scale) * (c - int(quantizer.zero_point)) for c in (0, 2**bits - 1)]
        nearest, found = (low, ends[0]) if low > 0 else (high, ends[1])
        # Both the plain grid and this one put their zero points on whole numbers.
        assert abs(found - nearest) <= 0.51 * float(quantizer.scale + plain.scale) + 1e-4


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-50, 0), high=st.floats(0.1, 50), bits=st.integers(2, 8))
def test_powers_of_two_cover_the_range_and_are_no_wider_than_they_must(low, high, bits):
    quantizer, plain = _built(ROUNDED_SCHEMES[0], bits), UniformQuantizer(TensorSpec(bits), "x")
    for one in (quantizer, plain):
        one.set_range(torch.tensor([low]), torch.tensor([high]))
    assert float(plain.scale) <= float(quantizer.scale) < 2 * float(plain.scale)
    assert is_allowed(quantizer.scale, ROUNDED_SCHEMES[0])


@pytest.mark.parametrize("scheme", ROUNDED_SCHEMES)
def test_symmetric_and_dynamic_grids_are_rounded_too(scheme):
    x = torch.randn(64, 9, generator=torch.Generator().manual_seed(0))
    symmetric = _built(scheme, 4, True)
    symmetric.set_range(x.min().reshape(1), x.max().reshape(1))
    assert int(symmetric.zero_point) == 0 and is_allowed(symmetric.scale, scheme)
    dynamic = _built(scheme, 4, granularity="token", dynamic=True)
    for row in dynamic.fake_quantize(x):
        steps = row.unique().diff()
        assert is_allowed(steps.min(), scheme)


@pytest.mark.parametrize("scheme", ROUNDED_SCHEMES)
@pytest.mark.parametrize("name", ["gptq", "qdrop"])
@torch.no_grad()
def test_methods_run_on_these_grids_and_through_a_file(
    name, scheme, vit, images, calibration, tmp_path
):
    cls = METHODS.get(name)
    method = cls.create(cls.quick)
    table = equal_table(BitWidth(4, 4)).change(SITES, scheme=scheme)
    quantized = method.quantize(vit, table, calibration)
    sites = [site for site in quantized.sites() if not site.quantizer.spec.is_float]
    assert all(isinstance(site.quantizer, RoundedScaleQuantizer) for site in sites)
    for site in sites:
        assert all(is_allowed(scale, scheme) for scale in site.quantizer.scale)
    layers = quantized.weighted_operations()
    assert all(layer.frozen for layer in layers)
    path = tmp_path / "q.safetensors"
    save_quantized(quantized, path, {})
    again = load_quantized(path, vit)
    assert again.table == table and torch.equal(again(images), quantized(images))
    layers[0].weight_quantizer.scale = layers[0].weight_quantizer.scale * 1.234
    save_quantized(quantized, path, {})
    with pytest.raises(MethodError, match="scales that are no"):
        load_quantized(path, vit)


@torch.no_grad()
def test_gptq_on_powers_of_two_is_better_than_the_nearest_codes(vit, images, calibration):
    table = equal_table(BitWidth(4, 32)).change(WEIGHT_SITES, scheme="uniform-power-of-two")
    expected = vit(images)
    errors = [
        float(
            (METHODS.get(name).create().quantize(vit, table, calibration)(images) - expected).norm()
        )
        for name in ("gptq", "omse")
    ]
    assert errors[0] < errors[1]


def test_a_detectors_other_layers_follow():
    table = equal_table(BitWidth(4, 4))
    plain = table.with_scope("full")
    assert {plain[key].scheme for key in DETECTOR_KEYS} == {"uniform"}
    assert plain.with_scope("backbone") == plain
    for scheme in ROUNDED_SCHEMES:
        own = table.change(SITES, scheme=scheme).with_scope("full")
        assert {own[key].scheme for key in DETECTOR_KEYS} == {scheme}
    other = table.change("fc1.weight", scheme="dual-uniform").with_scope("full")
    assert {other[key].scheme for key in DETECTOR_KEYS} == {"uniform"}
