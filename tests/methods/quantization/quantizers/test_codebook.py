"""Codebooks: 2^b numbers of an 8-bit type, the nearest of them, and what they cost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization import TensorSpec
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.codebook_search import search_codebook
from vit_ptq_bench.methods.quantization.calibration.level_search import search_levels
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.codebook import BLOCK

FORMS = ("codebook", "codebook-float")
EACH_FORM = pytest.mark.parametrize("form", FORMS)


def _quantizer(form, bits, axis=None):
    spec = TensorSpec(bits, "tensor" if axis is None else "channel", scheme=form)
    return build_quantizer(spec, "x", axis=axis)


def _chosen(quantizer, bits, generator):
    known = quantizer.candidates(bits)
    return known[torch.randperm(len(known), generator=generator)[: 2**bits].sort().values]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_place_is_that_of_the_nearest_level_and_of_the_even_one_half_way(seed, bits, form, dtype):
    """Against distances to all levels in numpy: on ties, beside them, and far beyond the outermost level."""
    generator = torch.Generator().manual_seed(seed)
    bits = min(bits, 7) if form == "codebook-float" else bits  # at 8 some numbers have two codes
    quantizer = _quantizer(form, bits)
    levels = _chosen(quantizer, bits, generator)
    quantizer.set_levels(levels, torch.ones(1))
    ties = (levels[1:] + levels[:-1]) / 2
    x = torch.randn(300, generator=generator) * levels.abs().max() * 0.7
    x = torch.cat([x, x * 1e-3, ties, ties.nextafter(ties - 1), ties.nextafter(ties + 1), levels])
    x = torch.cat([x, torch.tensor([-1e6, -1e-6, -0.0, 0.0, 1e-6, 1e6])]).to(dtype)
    x = x[(x == 0) | (x.abs() > 1e-30)]  # numpy cannot tell the distances of smaller ones
    exact, values = levels.numpy().astype(np.float64), x.numpy().astype(np.float64)
    distances = np.abs(values[:, None] - exact)
    expected = distances.argmin(axis=1)  # of two at one distance the lower
    tied = (distances == distances.min(axis=1, keepdims=True)).sum(axis=1) == 2
    expected = expected + (tied & (expected % 2 == 1))
    assert np.array_equal(quantizer.quantize(x).numpy(), expected)
    assert np.array_equal(quantizer.fake_quantize(x).numpy(), exact[expected])


def test_candidates_are_the_numbers_of_their_types():
    floats = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    known = floats[floats.isfinite()].unique()
    for bits in range(2, 8):
        assert torch.equal(_quantizer("codebook-float", bits).candidates(bits), known)
    assert torch.equal(_quantizer("codebook-float", 8).candidates(8).unique(), known)
    integers = torch.arange(256, dtype=torch.uint8).view(torch.int8).float().sort().values
    assert torch.equal(_quantizer("codebook", 8).candidates(8), integers)


@EACH_FORM
@pytest.mark.parametrize("bits", range(2, 9))
def test_all_that_is_chosen_is_accepted_from_a_file(form, bits):
    quantizer = _quantizer(form, bits)
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([2.0]))
    assert quantizer.problem() is None
    x = torch.randn(2000, generator=torch.Generator().manual_seed(bits))
    search_codebook(quantizer, x[None])
    assert quantizer.problem() is None
    assert float((quantizer(x) - x).square().mean()) < 0.13  # Max's two bits: 0.1175


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 6), form=st.sampled_from(FORMS))
def test_what_is_on_the_levels_stays_there(seed, bits, form):
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(seed))
    quantizer = _quantizer(form, bits, axis=0)
    search_levels(quantizer, x)
    once = quantizer.fake_quantize(x)
    assert torch.equal(quantizer.fake_quantize(once), once)
    assert torch.equal(quantizer.dequantize(quantizer.quantize(once)), once)


@EACH_FORM
def test_gradients_pass_straight_through(form):
    x = torch.randn(50, requires_grad=True)
    quantizer = _quantizer(form, 3)
    search_levels(quantizer, x.detach())
    (quantizer.fake_quantize(x) * torch.arange(50.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(50.0))


@pytest.mark.parametrize(("form", "level"), [("codebook", -20.5), ("codebook-float", -20.5)])
def test_a_file_with_a_level_that_the_type_does_not_have_is_refused(form, level):
    quantizer = _quantizer(form, 2)
    quantizer.set_levels(torch.tensor([-88.0, -20.0, 20.0, 88.0]), torch.ones(1))
    assert quantizer.problem() is None
    quantizer.levels[1] = level
    assert quantizer.problem() == "levels that its form does not have"


@EACH_FORM
def test_a_product_of_codebooks_is_one_of_eight_bits_and_not_of_its_codes(form):
    spec = equal_table(BitWidth(4, 4))["fc1.weight"]
    assert build_quantizer(spec, "w", axis=0).operand_bits == 4
    assert _quantizer(form, 4).operand_bits == 8 and _quantizer(form, 4).stored_bits == 4


@EACH_FORM
def test_blocks_are_put_together_as_they_were_taken_apart(form):
    """A tensor of several blocks and a rest, and one that does not lie as its shape says."""
    quantizer = _quantizer(form, 4)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3 * BLOCK // 4 + 5, generator=generator)
    search_codebook(quantizer, x[:1, :999])
    expected = quantizer.dequantize(quantizer.quantize(x))
    assert torch.equal(quantizer.fake_quantize(x), expected)
    assert torch.equal(quantizer.fake_quantize(x.T), expected.T)
    assert torch.equal(quantizer.fake_quantize(x[:, :0]), x[:, :0])
    x.requires_grad_()
    quantizer.fake_quantize(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
