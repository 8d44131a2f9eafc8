"""The logarithmic grids with a calibrated base, against their formulas in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization import load_quantized, save_quantized, wrap_model
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import TrainableStep

FORMS = ("log", "shifted-log", "adalog", "shifted-adalog")
BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**16)
STEPS = st.sampled_from((0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 3.7))


def _sample(scheme: str, seed: int) -> torch.Tensor:
    x = torch.randn(4, 3, 5, 67, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.gelu(x) if scheme.startswith("shifted") else (4 * x).softmax(-1)


def _built(scheme, bits, steps, scale=1.0, groups=1):
    granularity = "head" if groups > 1 else "tensor"
    quantizer = build_quantizer(TensorSpec(bits, granularity, scheme=scheme), "site", axis=1)
    k = torch.full((groups,), float(steps)) * (1 + torch.arange(groups) / groups)
    quantizer.set_levels(torch.full((groups,), float(scale)), k)
    return quantizer


def _levels(quantizer) -> np.ndarray:
    """The 2^b values of a quantizer with one scale, in float64, by the papers' formulas."""
    codes = np.arange(2**quantizer.spec.bits - 1)
    if hasattr(quantizer, "q"):
        table = np.rint(255 * 2.0 ** (-np.arange(37) / 37)) / 255
        product = codes * int(quantizer.q)
        values = 2.0 ** -(product // 37) * table[product % 37]
    else:
        values = 2.0 ** (-codes / float(quantizer.steps_per_octave))
    return np.append(values * float(quantizer.scale), 0) - quantizer.shift


@pytest.mark.parametrize("scheme", FORMS)
@settings(max_examples=20, deadline=None)
@given(bits=BITS, seed=SEEDS, steps=STEPS)
def test_idempotent_monotone_and_on_the_levels_of_the_formula(scheme, bits, seed, steps):
    x = _sample(scheme, seed)
    quantizer = _built(scheme, bits, steps, scale=float(x.max()) + quantizer_shift(scheme))
    kept = x.clone()
    once = quantizer.fake_quantize(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(quantizer.fake_quantize(once), once, rtol=1e-6, atol=1e-7)
    assert (once.flatten()[x.flatten().argsort()].diff() >= 0).all()
    levels = _levels(quantizer)
    distance = np.abs(once.double().numpy().reshape(-1, 1) - levels).min(axis=1)
    assert (distance <= 1e-6 * (np.abs(once.numpy().ravel()) + quantizer.shift)).all()
    assert len(once.unique()) <= 2**bits


def quantizer_shift(scheme: str) -> float:
    return GELU_MINIMUM if scheme.startswith("shifted") else 0.0


@pytest.mark.parametrize("scheme", FORMS)
@pytest.mark.parametrize("steps", [0.75, 1.5, 3])
def test_the_nearest_level_by_ratio_is_taken(scheme, steps):
    x = _sample(scheme, 5)
    quantizer = _built(scheme, 4, steps, scale=0.6)
    y = x.double().numpy() + quantizer.shift
    unit = 37 / int(quantizer.q) if hasattr(quantizer, "q") else steps
    codes = -unit * np.log2(np.maximum(y, 1e-300) / float(quantizer.scale))
    expected = _levels(quantizer)[np.clip(np.rint(codes), 0, 15).astype(int)]
    settled = np.abs(codes - np.floor(codes) - 0.5) > 1e-4
    got = quantizer.fake_quantize(x).numpy()
    np.testing.assert_allclose(got[settled], expected[settled], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scheme", FORMS)
def test_each_head_has_its_own_grid(scheme):
    x = _sample(scheme, 3)
    quantizer = _built(scheme, 3, 0.8, scale=0.9, groups=3)
    together = quantizer.fake_quantize(x)
    for head in range(3):
        alone = build_quantizer(TensorSpec(3, scheme=scheme), "site")
        alone.set_levels(quantizer.scale[[head]], 0.8 * (1 + torch.tensor([head / 3])))
        assert torch.equal(together[:, head], alone.fake_quantize(x[:, head]))


@pytest.mark.parametrize(("scheme", "octaves"), [("log", 9), ("shifted-log", 6)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_range_alone_spans_the_default_octaves(scheme, octaves, bits):
    quantizer = build_quantizer(TensorSpec(bits, scheme=scheme), "site")
    quantizer.set_range(torch.tensor([-0.1]), torch.tensor([2.0]))
    levels = np.sort(_levels(quantizer) + quantizer.shift)
    assert levels[-1] == pytest.approx(2 + quantizer.shift)
    assert np.log2(levels[-1] / levels[1]) == pytest.approx(octaves)


def test_adalog_takes_the_nearest_of_its_bases():
    quantizer = build_quantizer(TensorSpec(4, scheme="adalog"), "site")
    quantizer.set_levels(torch.ones(3), torch.tensor([1.5, 0.01, 1000.0]))
    assert quantizer.q.tolist() == [25, 138, 10] and quantizer.q.dtype == torch.int32


def test_the_shift_folds_into_the_bias_behind():
    x, weight, bias = _sample("shifted-log", 1), torch.randn(9, 67), torch.randn(9)
    shifted, plain = _built("shifted-log", 4, 2.5, 3.0), _built("log", 4, 2.5, 3.0)
    y = (x + GELU_MINIMUM).clamp_min(0)
    folded = bias - GELU_MINIMUM * weight.sum(dim=1)
    torch.testing.assert_close(
        shifted.fake_quantize(x) @ weight.T + bias,
        plain.fake_quantize(y) @ weight.T + folded,
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("scheme", FORMS)
def test_what_is_below_the_domain_is_the_lowest_value(scheme):
    quantizer = _built(scheme, 4, 2)
    x = torch.tensor([[-5.0], [-quantizer.shift - 1e-3]])
    assert torch.equal(quantizer.fake_quantize(x), torch.full((2, 1), -quantizer.shift))


@pytest.mark.parametrize("scheme", FORMS)
def test_what_is_not_finite_is_not_hidden(scheme):
    x = _sample(scheme, 4)
    x[1, 2, 0, 0], x[0, 0, 0, 0] = torch.nan, torch.inf
    values = _built(scheme, 4, 2, groups=3).fake_quantize(x)
    assert values.isnan().nonzero().tolist() == [[1, 2, 0, 0]]
    assert values[0, 0, 0, 0] == values[~values.isnan()].max()


@pytest.mark.parametrize("scheme", FORMS)
def test_gradients_pass_straight_through(scheme):
    quantizer = _built(scheme, 4, 2)
    x = _sample(scheme, 2)
    values = quantizer.fake_quantize(x)
    given_ = torch.randn(x.shape)
    for module in (quantizer.fake_quantize, TrainableStep(quantizer, torch.Generator())):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output.backward(given_)
        assert torch.equal(leaf.grad, given_)
        torch.testing.assert_close(output.detach(), values)


@pytest.mark.parametrize("scheme", FORMS)
def test_parameters_that_no_calibration_gives_are_named(scheme):
    quantizer = _built(scheme, 4, 2)
    assert quantizer.problem() is None
    buffer = "q" if "adalog" in scheme else "steps_per_octave"
    good = getattr(quantizer, buffer)
    for bad, words in (
        (good.double(), "type"),
        (good[:0], r"scales \(1,\) with"),
        (-good, "outside 10 to 138" if buffer == "q" else "no positive numbers"),
    ):
        setattr(quantizer, buffer, bad)
        assert words.replace("\\", "") in quantizer.problem()
    with pytest.raises(MethodError, match="site: NaN"):
        quantizer.set_levels(torch.tensor([float("nan")]), torch.ones(1))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["log", "adalog"])
def test_the_forms_live_through_a_file(kind, vit, images, calibration, tmp_path):
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth(4, 4)).change("fc2.input", scheme=f"shifted-{kind}")
    table = table.change("attention", scheme=kind, granularity="head")
    quantized = method.quantize(vit, table, calibration)
    product = quantized.module.blocks[0].attn.context
    product.first_quantizer.set_levels(torch.tensor([0.5, 0.25]), torch.tensor([1.5, 1.0]))
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", vit)
    assert torch.equal(again(images), quantized(images))


@pytest.mark.parametrize(
    ("site", "scheme", "right"),
    [
        ("fc1.input", "log", "attention"),
        ("fc2.input", "adalog", "attention"),
        ("value", "log-sqrt2", "attention"),
        ("qkv.weight", "twin-softmax", "attention"),
        ("key", "log-int-softmax", "attention"),
        ("attention", "shifted-log", "fc2.input"),
        ("fc1.input", "shifted-adalog", "fc2.input"),
        ("proj.input", "twin-gelu", "fc2.input"),
    ],
)
def test_a_form_is_refused_where_it_cannot_stand_for_the_values(
    site, scheme, right, vit, calibration
):
    table = equal_table(BitWidth(4, 4)).change(site, scheme=scheme)
    with pytest.raises(MethodError, match=rf"^{site}: the form '{scheme}' has .* only.*'{right}'"):
        wrap_model(vit, table)
    with pytest.raises(MethodError, match=site):
        METHODS.get("minmax").create({}).quantize(vit, table, calibration)
    wrap_model(vit, table.change(site, bits=32))
