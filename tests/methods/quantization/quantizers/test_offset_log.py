"""The logarithmic grid with a calibrated offset, and its search, against numpy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization import load_quantized, save_quantized
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.calibration.offset_search import (
    OFFSETS,
    SHARES,
    SPANS,
    SortedEntries,
    offset_log_rule,
)
from vit_ptq_bench.methods.quantization.calibration.range_search import shifted_log_rule
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableLogScale,
)


def _sample(seed: int = 0) -> torch.Tensor:
    x = torch.randn(4, 3, 5, 67, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.gelu(2 * x - 0.7)


def _built(bits=4, scale=3.0, steps=3.0, offset=0.4, groups=1, scheme="offset-log"):
    granularity = "head" if groups > 1 else "tensor"
    quantizer = build_quantizer(TensorSpec(bits, granularity, scheme=scheme), "site", axis=1)
    grown = 1 + torch.arange(groups) / groups
    quantizer.set_levels(scale * grown, steps * grown)
    quantizer.set_offset(offset * grown)
    return quantizer


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 2**16),
    steps=st.sampled_from((0.5, 1.0, 2.3, 4.0)),
    offset=st.sampled_from((0.18, 0.3, 0.7, 2.0)),
)
def test_all_codes_are_powers_and_the_nearest_by_ratio_is_taken(bits, seed, steps, offset):
    x = _sample(seed)
    quantizer = _built(bits, 3.0, steps, offset)
    codes = -steps * np.log2((x.double().numpy() + offset) / 3.0)
    levels = 3.0 * 2.0 ** (-np.arange(2**bits) / steps) - offset
    expected = levels[np.clip(np.rint(codes), 0, 2**bits - 1).astype(int)]
    settled = np.abs(codes - np.floor(codes) - 0.5) > 1e-4
    once = quantizer.fake_quantize(x)
    np.testing.assert_allclose(once.numpy()[settled], expected[settled], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.fake_quantize(once), once, rtol=1e-6, atol=1e-6)


def test_each_group_has_its_own_grid():
    x, quantizer = _sample(3), _built(groups=3)
    together = quantizer.fake_quantize(x)
    for group in range(3):
        grown = 1 + group / 3
        alone = _built(scale=3 * grown, steps=3 * grown, offset=0.4 * grown)
        torch.testing.assert_close(together[:, group], alone.fake_quantize(x)[:, group])


def test_the_offset_folds_into_the_bias_behind():
    x, weight, bias = _sample(1), torch.randn(9, 67), torch.randn(9)
    quantizer, offset = _built(), 0.4
    y_levels = quantizer.levels() + offset
    codes = (x[..., None] + offset).log2().sub(y_levels[0].log2()).abs().argmin(dim=-1)
    folded = bias - offset * weight.sum(dim=1)
    torch.testing.assert_close(
        quantizer.fake_quantize(x) @ weight.T + bias,
        y_levels[0][codes] @ weight.T + folded,
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_range_alone_spans_gelus_minimum_to_its_upper_end(bits):
    quantizer = build_quantizer(TensorSpec(bits, scheme="offset-log"), "site")
    quantizer.set_range(torch.tensor([-0.1]), torch.tensor([2.0]))
    levels = quantizer.levels()[0]
    assert levels[0] == pytest.approx(2.0) and levels[-1] == pytest.approx(-GELU_MINIMUM)
    assert quantizer.problem() is None


def test_parameters_that_no_calibration_gives_are_named():
    quantizer = _built()
    good = quantizer.offset
    for bad, words in (
        (good.double(), "offsets of type"),
        (good[:0], "scales (1,) with offsets (0,)"),
        (torch.full_like(good, 0.1), "above 0.16997"),
        (good * torch.nan, "above 0.16997"),
    ):
        quantizer.offset = bad
        assert words in quantizer.problem()
    with pytest.raises(MethodError, match="site: NaN"):
        quantizer.set_offset(torch.tensor([float("inf")]))


def test_what_is_not_finite_is_not_hidden():
    x = _sample(4)
    x[1, 2, 0, 0], x[0, 0, 0, 0] = torch.nan, torch.inf
    values = _built(groups=3).fake_quantize(x)
    assert values.isnan().nonzero().tolist() == [[1, 2, 0, 0]]
    assert values[0, 0, 0, 0] == values[0, 0].max()


def test_the_scale_is_trained_as_the_levels_say():
    """The slope by log s of y = s l - c is the level times s, below the largest, less the entry's y."""
    quantizer, x = _built(), _sample(2)
    trained = TrainableLogScale(quantizer, torch.Generator())
    leaf = x.clone().requires_grad_()
    output = trained(leaf)
    output.sum().backward()
    y, levels = x.double() + 0.4, quantizer.fake_quantize(x).double() + 0.4
    inside = y <= 3.0
    slope = (levels - y * inside).sum() / np.sqrt(x.numel())
    assert float(trained.step.grad) == pytest.approx(float(slope), rel=1e-4)
    assert torch.equal(leaf.grad, inside.to(x.dtype))


@torch.no_grad()
def test_the_form_lives_through_a_file(vit, images, calibration, tmp_path):
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth(4, 4)).change("fc2.input", scheme="offset-log")
    quantized = method.quantize(vit, table, calibration)
    quantized.module.blocks[0].mlp.fc2.input_quantizer.set_offset(torch.tensor([0.7]))
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", vit)
    assert torch.equal(again(images), quantized(images))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 60))
def test_prefix_sums_give_the_squared_error(seed, n):
    generator = np.random.default_rng(seed)
    entries, levels = generator.normal(size=n), np.sort(generator.normal(size=(3, 5)), axis=1)
    borders = (levels[:, 1:] + levels[:, :-1]) / 2
    found = SortedEntries(torch.tensor(entries)).errors(torch.tensor(levels), torch.tensor(borders))
    expected = [
        np.square(entries - own[np.searchsorted(edge, entries)]).sum()
        for own, edge in zip(levels, borders, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bits", [3, 4])
def test_the_searched_grid_is_the_best_of_all_and_better_than_the_fixed_shift(bits):
    x = _sample(5)
    x[0, 0, 0, 0] = 500.0  # does not count
    counted = x[x < 20]

    def error(quantizer):
        return float((quantizer.fake_quantize(counted) - counted).double().square().sum())

    def searched(scheme, rule):
        quantizer = build_quantizer(TensorSpec(bits, scheme=scheme), "x")
        rule(Site("x", "fc2.input", quantizer, None), x)
        return error(quantizer)

    found = searched("offset-log", offset_log_rule())
    top, tried = float(counted.max()), []
    for offset, share, span in itertools.product(OFFSETS, SHARES[::4], SPANS[::3]):
        scale = (top + GELU_MINIMUM) * share - GELU_MINIMUM + offset
        octaves = np.log2(scale / (offset - GELU_MINIMUM)) * span
        tried.append(error(_built(bits, scale, (2**bits - 1) / octaves, offset)))
    assert found <= min(tried) * (1 + 1e-4)
    assert found < 0.9 * searched("shifted-log", shifted_log_rule())
