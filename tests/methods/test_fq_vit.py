"""FQ-ViT: power-of-two factors and Log-Int-Softmax; the optional site in front of LayerNorm."""

import math

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.range_rules import power_of_two_factor_rule
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.logarithmic import (
    LogIntSoftmaxQuantizer,
    LogQuantizer,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized

GENERATOR = torch.Generator().manual_seed(0)


def _factored(x, bits):
    spec = TensorSpec(bits, "channel", scheme="power-of-two-factor")
    quantizer = UniformQuantizer(spec, "norm.input", axis=-1)
    power_of_two_factor_rule(Site("norm.input", "norm.input", quantizer, None), x)
    return quantizer


@pytest.mark.parametrize("bits", [4, 8])
def test_factors_are_the_best_powers_of_two_of_each_channel(bits):
    x = torch.randn(50, 12, generator=GENERATOR) * torch.logspace(-1, 1, 12)
    quantizer = _factored(x, bits)
    levels = 2**bits - 1
    step = (x.max() - x.min()) / levels
    zero = torch.round(-x.min() / step)
    for c in range(12):
        errors = []
        for exponent in range(4):
            s = step / 8 * 2**exponent
            codes = np.clip(np.round(x[:, c].numpy() / float(s)) + float(zero), 0, levels)
            errors.append((((codes - float(zero)) * float(s) - x[:, c].numpy()) ** 2).sum())
        assert float(quantizer.scale[c]) == pytest.approx(
            float(step) / 8 * 2 ** int(np.argmin(errors))
        )
    assert (quantizer.zero_point == zero).all()
    values = quantizer.fake_quantize(x)
    torch.testing.assert_close(quantizer.fake_quantize(values), values)
    plain = UniformQuantizer(TensorSpec(bits), "x")
    plain.set_range(x.min().reshape(1), x.max().reshape(1))
    assert (values - x).norm() < 0.8 * (plain.fake_quantize(x) - x).norm()


def test_log_int_softmax_is_integer_arithmetic():
    exponentials = torch.randint(1, 5000, (40, 16), generator=GENERATOR)
    p = exponentials.double() / exponentials.sum(1, keepdim=True)
    quantizer = LogIntSoftmaxQuantizer(TensorSpec(4, scheme="log-int-softmax"), "p")
    quantizer.set_range(torch.zeros(1), torch.ones(1))
    for row, codes in zip(exponentials.tolist(), quantizer.codes(p).tolist(), strict=True):
        for e, code in zip(row, codes, strict=True):
            ratio = round(sum(row) / e)
            octave = ratio.bit_length() - 1
            assert code == octave + (2 * ratio >= 3 * 2**octave)
    values = quantizer.fake_quantize(torch.cat([torch.zeros(1), torch.logspace(-8, 0, 3000)]))
    assert values[0] == 0 and len(values.unique()) <= 16
    assert (values.diff() >= 0).all() and values[-1] == 1
    torch.testing.assert_close(quantizer.fake_quantize(values), values)


def test_polynomial_of_the_paper_is_as_close_to_exp_as_said():
    """The deviation stated in the docstring: i-exp on one octave, (-ln 2, 0]."""
    x = np.linspace(-math.log(2), 0, 10001)
    polynomial = 0.35815147 * x**2 + 0.96963238 * x + 1
    assert 3e-3 < np.abs(polynomial / np.exp(x) - 1).max() < 3.5e-3


def test_tables_without_norms_are_what_they_were():
    table = equal_table(BitWidth(4, 4))
    assert "norm.input" not in table and "norm.input" not in table.to_dict()
    assert "norm.input" not in table.change("norm.input", symmetric=True)
    method = METHODS.get("fq-vit").create()
    assert "norm.input" not in method.bit_table(BitWidth(4, 4))
    own = method.bit_table(BitWidth(4, 4), "authors")
    assert own["norm.input"].bits == 4
    assert BitTable.from_dict(own.to_dict()).to_dict() == own.to_dict()


@torch.no_grad()
def test_norm_quantizers_that_are_off_change_nothing(tiny, images):
    table = METHODS.get("fq-vit").create().bit_table(BitWidth(4, 4), "authors")
    wrapped = wrap_model(tiny, table)
    norms = [op for op in wrapped.operations if op.role == "norm"]
    layer_norms = sum(isinstance(m, torch.nn.LayerNorm) for m in tiny.modules())
    assert len(norms) == layer_norms
    torch.testing.assert_close(wrapped(images), tiny(images), rtol=0, atol=1e-5)
    inside = [op for segment in wrapped.structure.segments for op in segment.operations]
    assert inside == wrapped.operations


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_saved_with_its_norm_quantizers(bits, tiny, images, calibration, tmp_path):
    method = METHODS.get("fq-vit").create()
    table = method.bit_table(BitWidth(bits, bits), "authors")
    quantized = method.quantize(tiny, table, calibration)
    sites = [site for site in quantized.sites() if site.key == "norm.input"]
    ratios = {
        round(math.log2(float(r)), 4)
        for site in sites
        for r in site.quantizer.scale / site.quantizer.scale.max()
    }
    assert ratios <= {0.0, -1.0, -2.0, -3.0} and len(ratios) > 1
    save_quantized(quantized, tmp_path / "m.safetensors", {})
    assert torch.equal(load_quantized(tmp_path / "m.safetensors", tiny)(images), quantized(images))


@torch.no_grad()
def test_logarithmic_quantizer_with_a_scale_per_head():
    x = torch.rand(2, 3, 5, 5, generator=GENERATOR) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    spec = TensorSpec(4, "head", scheme="log-sqrt2")
    per_head = LogQuantizer(spec, "attention", axis=1)
    largest = x.amax(dim=(0, 2, 3))
    per_head.set_range(torch.zeros(3), largest)
    found = per_head.fake_quantize(x)
    for head in range(3):
        one = LogQuantizer(TensorSpec(4, scheme="log-sqrt2"), "attention")
        one.set_range(torch.zeros(1), largest[head : head + 1])
        torch.testing.assert_close(found[:, head], one.fake_quantize(x[:, head]))
