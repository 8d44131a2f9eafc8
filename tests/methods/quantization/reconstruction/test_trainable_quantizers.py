"""What units learn: smoothing, clipping, ranges; and the losses they learn on."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.losses import (
    Batch,
    FisherError,
    Homologous,
    MeanError,
    NegativeLogCosine,
)
from vit_ptq_bench.methods.quantization.reconstruction.smoothing import Smoothing
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    BatchRange,
    TrainableClip,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Unit

GENERATOR = torch.Generator().manual_seed(0)


def _attach(model, images, **settings):
    """Smoothing on the first block, its scales and shifts moved at random."""
    segments = model.structure.segments
    index = next(i for i, s in enumerate(segments) if s.kind == "block")
    x = images
    with torch.no_grad():
        for segment in segments[:index]:
            x = segment.run(x)
    unit = Unit(segments[index], model.structure, x, x, GENERATOR)
    places = Smoothing(**settings).attach(unit)
    for place in places:
        for parameter in place.parameters():
            with torch.no_grad():
                parameter.mul_(torch.rand(parameter.shape, generator=GENERATOR) + 0.5)
    return unit, places


@pytest.mark.parametrize("shift", [True, False])
def test_smoothing_keeps_the_full_precision_function_while_learning_and_once_folded(
    shift, tiny, images
):
    table = equal_table(BitWidth(4, 4)).change("attention", bits=32)
    model = wrap_model(tiny, table)
    unit, places = _attach(model, images, shift=shift)
    assert len(places) == 3  # norm1, norm2, values
    assert all(len(p.parameters()) == 1 + shift for p in places)
    before = model.structure.norm_links[0].reader.weight.clone()
    exact = wrap_model(tiny, table)(images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), exact, rtol=0, atol=1e-4)
        for place in reversed(places):
            place.detach(accept=True)
        torch.testing.assert_close(model(images), exact, rtol=0, atol=1e-4)
    assert not torch.equal(before, model.structure.norm_links[0].reader.weight)
    assert not any(op._forward_hooks for op in unit.segment.operations)


@torch.no_grad()
def test_what_was_learned_with_gains_is_what_is_folded_and_refusal_restores(vit, images):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    exact = model(images)
    _, places = _attach(model, images, gain=True)
    learned = model(images)
    assert not torch.allclose(learned, exact, atol=1e-3)  # gains change the function
    for place in places:
        place.switch(False)
    torch.testing.assert_close(model(images), exact, rtol=0, atol=1e-5)
    for place in places:
        place.switch(True)
        place.detach(accept=True)
    torch.testing.assert_close(model(images), learned, rtol=0, atol=1e-4)

    other = wrap_model(vit, equal_table(BitWidth(4, 4)))
    for place in _attach(other, images)[1]:
        place.detach(accept=False)
    assert torch.equal(other(images), exact)


def test_values_get_no_shift_where_the_attention_map_is_quantized(vit, images):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    _, places = _attach(model, images)
    assert [len(place.parameters()) for place in places] == [2, 2, 1]


def test_smoothing_starts_at_the_logarithmic_activation_equivalent(vit, images):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    segments = model.structure.segments
    seen = []
    reader = model.structure.norm_links[0].reader
    handle = reader.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach()))
    with torch.no_grad():
        x = segments[0].run(images)
        segments[1].run(x)
    handle.remove()
    place = Smoothing().attach(Unit(segments[1], model.structure, x, x, GENERATOR))[0]
    tokens = seen[0].numpy()
    largest = np.abs(tokens).max(axis=(0, 1))
    np.testing.assert_allclose(
        place.scale.detach(), np.maximum(largest / np.log2(2 + largest), 0.01), rtol=1e-5
    )
    middle = ((tokens.max(axis=1) + tokens.min(axis=1)) / 2).mean(axis=0)
    np.testing.assert_allclose(place.shift.detach(), middle, rtol=1e-4, atol=1e-6)


def test_clipping_wide_open_is_min_max_and_codes_are_what_was_learned():
    weight = torch.randn(6, 20, generator=GENERATOR)
    inner = UniformQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    clip = TrainableClip(inner, weight, gain=True)
    with torch.no_grad():
        clip.lower.fill_(40.0)
        clip.upper.fill_(40.0)
        inner.set_range(weight.amin(1), weight.amax(1))
        torch.testing.assert_close(clip(weight), inner.fake_quantize(weight))
        clip.lower.normal_(generator=GENERATOR)
        clip.upper.normal_(generator=GENERATOR)
        clip.gain.uniform_(0.5, 2.0, generator=GENERATOR)
        learned = clip(weight)
        torch.testing.assert_close(inner.dequantize(clip.codes(weight)), learned)
    clip(weight).square().sum().backward()
    for parameter in (clip.lower, clip.upper, clip.gain):
        assert (parameter.grad != 0).all()


@pytest.mark.parametrize("spec", [TensorSpec(4, "token", dynamic=True), TensorSpec(4)])
def test_batch_range_is_the_dynamic_quantizer_and_its_gradient_moves_the_step(spec):
    x = torch.randn(3, 5, 8, generator=GENERATOR)
    dynamic = UniformQuantizer(TensorSpec(4, spec.granularity, dynamic=True), "x")
    learned = BatchRange(UniformQuantizer(spec, "x"))
    torch.testing.assert_close(learned(x), dynamic.fake_quantize(x))
    # The step follows the range, so Q(a x) = a Q(x) and its derivative by a is Q(x); a step without
    # gradient would give x instead.
    factor = torch.ones((), requires_grad=True)
    probe = torch.randn(x.shape, generator=GENERATOR)
    (learned(factor * x) * probe).sum().backward()
    expected = (dynamic.fake_quantize(x) * probe).sum()
    torch.testing.assert_close(factor.grad, expected, rtol=1e-3, atol=1e-3)


def test_terms_against_numpy():
    output, target, other = (torch.randn(2, 5, 8, generator=GENERATOR) for _ in range(3))
    importance = torch.rand(2, 5, 8, generator=GENERATOR)
    batch = Batch(output, target, lambda y: y, output, importance=importance, homologous=other)
    y, t, h = output.numpy(), target.numpy(), other.numpy()
    cosine = (y * t).sum(-1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(t, axis=-1)
    assert float(NegativeLogCosine()(batch)) == pytest.approx(-np.log(abs(cosine.mean())), rel=1e-4)
    assert float(MeanError()(batch)) == pytest.approx(((y - t) ** 2).mean(), rel=1e-5)
    same_input = Homologous(loss=MeanError())
    assert float(same_input(batch)) == pytest.approx(((y - h) ** 2).mean(), rel=1e-5)
    fisher = ((y - t) ** 2 * importance.numpy()).sum(-1).mean()
    assert float(FisherError()(batch)) == pytest.approx(fisher, rel=1e-5)


@pytest.mark.parametrize("name", ["lrquant", "lrquant-plus"])
@pytest.mark.parametrize("protocol", ["equal", "authors"])
def test_lrquant_lowers_the_error_of_the_output(name, protocol, vit, images, calibration):
    def error(iterations):
        method = METHODS.get(name).create({"iterations": iterations})
        table = method.bit_table(BitWidth(3, 8), protocol)
        with torch.no_grad():
            quantized = method.quantize(vit, table, calibration)
            return float((quantized(images) - vit(images)).square().mean())

    assert error(60) < 0.9 * error(0)


@pytest.mark.parametrize("name", ["lrquant", "lrquant-plus"])
def test_lrquant_trains_no_head(name, vit, images, calibration):
    """Few images say what each class's range and factor should be for them, and for no others."""

    def weights(iterations):
        method = METHODS.get(name).create({"iterations": iterations})
        quantized = method.quantize(vit, method.bit_table(BitWidth(6, 6)), calibration)
        return {op.role: op.weight.clone() for op in quantized.operations if hasattr(op, "weight")}

    start, trained = weights(0), weights(3)
    assert torch.equal(start["head"], trained["head"])
    assert not torch.equal(start["fc2"], trained["fc2"])


def test_lrquant_authors_convention(vit, calibration):
    method = METHODS.get("lrquant").create({"iterations": 2})
    table = method.bit_table(BitWidth(4, 4), "authors")
    floating = {key for key, spec in table.items() if spec.is_float}
    assert floating == {
        *("patch_embed.weight", "patch_embed.input", "head.weight", "head.input"),
        *("query", "key", "attention", "value"),
    }
    assert table["qkv.input"].dynamic and table["qkv.input"].granularity == "token"
    words = method.convention(table)
    assert "floating point: " in words and "dynamic: " in words and "2 iterations" in words
    equal = method.bit_table(BitWidth(4, 4))
    assert not any(spec.dynamic or spec.is_float for spec in equal.values())
