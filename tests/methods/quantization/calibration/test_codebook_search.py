"""Codebooks of activations: the best of all choices, and attention maps by what they are multiplied with."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization import TensorSpec
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.codebook_search import (
    codebook_rule,
    search_codebook,
)
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.codebook import CodebookQuantizer
from vit_ptq_bench.methods.quantization.search.attention_maps import search_maps


class Nine(CodebookQuantizer):
    """So few candidates that all subsets can be tried."""

    shares = (1.0, 0.6)

    @classmethod
    def candidates(cls, bits):
        return torch.tensor([-128.0, -70, -32, -9, 0, 11, 40, 64, 127])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 3),
    power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_of_all_subsets_and_scales_the_one_of_least_weighted_error_is_found(seed, groups, power):
    x = torch.randn(groups, 40, generator=torch.Generator().manual_seed(seed))
    quantizer = Nine(TensorSpec(2, "channel"), "x", axis=0)
    search_codebook(quantizer, x, power)
    values = x.double().numpy()
    reach = np.abs(values).max(axis=1, keepdims=True)
    weights = reach**2 * np.maximum(np.abs(values) / reach, 1e-4) ** -power
    known, best = Nine.candidates(2).double().numpy(), np.inf
    for share in Nine.shares:
        ratio = values / (share * reach / 128)
        for subset in combinations(known, 4):
            off = np.abs(ratio[:, :, None] - np.array(subset)).min(axis=2) * share * reach / 128
            best = min(best, float((weights / reach**2 * off**2).sum()))
    off = quantizer.fake_quantize(x).double().numpy() - values
    assert float((weights / reach**2 * off**2).sum()) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(("bits", "optimum"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
@pytest.mark.parametrize("form", ["codebook", "codebook-float"])
def test_levels_of_a_normal_distribution_are_nearly_as_good_as_max_found(form, bits, optimum):
    """Least squared errors of a standard normal: Max, Quantizing for minimum distortion, 1960, table I."""
    x = torch.randn(60_000, generator=torch.Generator().manual_seed(bits))
    quantizer = build_quantizer(TensorSpec(bits, scheme=form), "x")
    search_codebook(quantizer, x[None])
    error = float((quantizer.fake_quantize(x) - x).square().mean()) / float(x.square().mean())
    assert optimum * 0.97 < error < optimum * (1.03 if form == "codebook" else 1.06)


def test_a_few_huge_entries_behind_gelu_are_kept_and_do_not_own_the_levels():
    x = torch.nn.functional.gelu(torch.randn(50_000, generator=torch.Generator().manual_seed(0)))
    far = x.clone()
    far[:40] = 150.0
    errors = {}
    for name, shown in (("with", far), ("without", x)):
        quantizer = build_quantizer(TensorSpec(4, scheme="codebook-float"), "x")
        codebook_rule(Site("x", "fc2.input", quantizer, torch.nn.Identity()), shown)
        errors[name] = float((quantizer.fake_quantize(x) - x).square().mean())
        if name == "with":
            assert float(quantizer.fake_quantize(far).max()) == pytest.approx(150, rel=0.01)
    assert errors["with"] < 1.5 * errors["without"]


def _product(form, bits):
    table = equal_table(BitWidth(8, 8)).change("attention", scheme=form, bits=bits)
    product = QuantMatMul("context", "context", ("attention", "value"), table, transposed=False)
    product.second_quantizer.set_range(torch.tensor([-4.0]), torch.tensor([4.0]))
    return product


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_a_map_on_a_codebook_costs_the_product_less_than_on_a_logarithmic_grid(bits):
    generator = torch.Generator().manual_seed(bits)
    scores = 2.5 * torch.randn(4, 3, 50, 50, generator=generator)
    values = torch.randn(4, 3, 50, 16, generator=generator)
    inputs, errors = (scores.softmax(-1), values), {}
    for form in ("codebook-float", "log"):
        product = _product(form, bits)
        search_maps([product], lambda product=product: product(*inputs))
        rounded = product.first_quantizer.fake_quantize(inputs[0])
        errors[form] = float(((rounded - inputs[0]) @ values).square().mean())
        assert product.first_quantizer.problem() is None
    assert errors["codebook-float"] < errors["log"]
