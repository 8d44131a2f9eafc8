"""Searches of two numbers of a grid, against all pairs in numpy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import calibrate_activations
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped, minmax_rule
from vit_ptq_bench.methods.quantization.calibration.range_search import (
    GELU_SHARES,
    GELU_STEPS,
    sampled,
    shifted_log_rule,
    two_ended_rule,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM

FACTORS = np.linspace(0.1, 1, 24)


def _site(key="qkv.input", axis=None, **fields):
    return Site("x", key, build_quantizer(TensorSpec(**fields), "x", axis), None)


def _skewed(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(x > 0, 3 * x**3, x)


@settings(max_examples=50, deadline=None)
@given(
    groups=st.integers(1, 3),
    width=st.integers(1, 5000),
    most=st.integers(5, 999),
    seed=st.integers(0, 9),
)
def test_a_sample_is_spread_over_every_channel(groups, width, most, seed):
    x = torch.arange(groups * width, dtype=torch.float32).view(groups, width)
    taken = sampled(x, most)
    assert taken.shape[1] <= most and torch.equal(taken, sampled(x, most))
    assert set(taken[-1].tolist()) <= set(x[-1].tolist())
    channels = 12
    if width > most and width % channels == 0 and taken.shape[1] >= channels:
        assert len({int(v) % channels for v in taken[0]}) == channels


def _errors(values, low, high, bits):
    """Squared error of every pair of factors, from the definition, in float64 ([24, 24])."""
    errors = np.empty((24, 24))
    for (i, a), (j, b) in itertools.product(enumerate(FACTORS), repeat=2):
        step = (b * high - a * low) / (2**bits - 1)
        zero = np.rint(-a * low / step)
        codes = np.clip(np.rint(values / step) + zero, 0, 2**bits - 1)
        errors[i, j] = np.square(step * (codes - zero) - values).sum()
    return errors


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_both_ends_are_nearly_those_of_all_pairs(bits, seed):
    x = _skewed(40, 100, seed=seed)
    site = _site(bits=bits)
    two_ended_rule()(site, x)
    values = x.double().numpy().ravel()
    errors = _errors(values, values.min(), values.max(), bits)
    found = (site.quantizer.fake_quantize(x) - x).square().sum().item()
    assert errors.min() * 0.999 <= found <= errors.min() * 1.05
    # A fixed point: no other factor of one end alone is better.
    scale, zero = float(site.quantizer.scale), int(site.quantizer.zero_point)
    fits = [
        (i, j)
        for (i, a), (j, b) in itertools.product(enumerate(FACTORS), repeat=2)
        if np.isclose((b * values.max() - a * values.min()) / (2**bits - 1), scale, rtol=1e-5)
        and np.rint(-a * values.min() / scale) == zero
    ]
    assert any(errors[i, j] <= min(errors[i].min(), errors[:, j].min()) * 1.001 for i, j in fits)


@pytest.mark.parametrize(
    ("granularity", "axis", "shape"),
    [
        ("channel", -1, (8, 60, 5)),
        ("head", 1, (4, 3, 20, 16)),
        ("projection", 0, (12, 40)),
        ("channel", 0, (6, 90)),
    ],
)
def test_each_group_is_searched_for_itself(granularity, axis, shape):
    x = _skewed(*shape) * torch.logspace(-1, 1, shape[axis]).view(
        [-1 if d == axis % len(shape) else 1 for d in range(len(shape))]
    )
    site = _site(bits=4, granularity=granularity, axis=axis)
    two_ended_rule()(site, x)
    for index, row in enumerate(grouped(x, site.quantizer)):
        alone = _site(bits=4)
        two_ended_rule()(alone, row)
        assert torch.equal(site.quantizer.scale[[index]], alone.quantizer.scale)
        assert torch.equal(site.quantizer.zero_point[[index]], alone.quantizer.zero_point)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_ends_stay_where_nothing_is_gained_and_constants_survive(symmetric):
    uniform = torch.linspace(-1, 1, 1001)[None]
    searched, widest = (_site(bits=4, symmetric=symmetric) for _ in range(2))
    two_ended_rule()(searched, uniform)
    minmax_rule(widest, uniform)
    assert torch.equal(searched.quantizer.scale, widest.quantizer.scale)
    constant = torch.full((1, 7), 3.0)
    two_ended_rule()(searched, constant)
    assert (searched.quantizer.fake_quantize(constant) - constant).abs().max() < 0.25


@pytest.mark.parametrize("scheme", ["shifted-log", "shifted-adalog"])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_grid_behind_gelu_is_the_best_of_all_pairs(scheme, bits):
    x = torch.nn.functional.gelu(_skewed(30, 200, seed=4))
    x[0, 0] = 500.0  # does not count
    site = _site("fc2.input", bits=bits, scheme=scheme)
    shifted_log_rule()(site, x)

    def error(quantizer):
        counted = x[x + GELU_MINIMUM < 20]
        return float((quantizer.fake_quantize(counted) - counted).double().square().sum())

    tried = []
    for k, share in itertools.product(GELU_STEPS[bits], GELU_SHARES):
        other = _site("fc2.input", bits=bits, scheme=scheme).quantizer
        other.set_levels(torch.tensor([20.0 * share]), torch.tensor([k]))
        tried.append(error(other))
    assert error(site.quantizer) == pytest.approx(min(tried))


def test_a_few_huge_entries_behind_gelu_do_not_own_the_range():
    x = torch.nn.functional.gelu(_skewed(30, 200, seed=4)).clamp_max(15)
    huge = x.clone()
    huge[0, 0] = 210.0
    sites = [_site("fc2.input", bits=4) for _ in range(2)]
    for site, entries in zip(sites, (x.masked_fill(huge > 200, 0), huge), strict=True):
        two_ended_rule()(site, entries)
    assert torch.equal(sites[0].quantizer.scale, sites[1].quantizer.scale)
    elsewhere = _site("fc1.input", bits=4)
    two_ended_rule()(elsewhere, huge)
    assert elsewhere.quantizer.scale > 5 * sites[0].quantizer.scale


@torch.no_grad()
def test_the_rules_calibrate_a_model(vit, images):
    calibration = Calibration([images])
    table = equal_table(BitWidth(4, 4)).change("fc2.input", scheme="shifted-log")
    model = wrap_model(vit, table)
    uniform, logarithmic = two_ended_rule(), shifted_log_rule()

    def rule(site, x):
        (logarithmic if site.key == "fc2.input" else uniform)(site, x)

    calibrate_activations(model, calibration, rule)
    assert all(s.quantizer.problem() is None for s in model.sites() if not s.is_weight)
