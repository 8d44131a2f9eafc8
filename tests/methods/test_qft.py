"""QFT: without iterations its start, factors that change nothing in full precision, LSQ's gradients."""

import math

import pytest
import torch

from vit_ptq_bench.bench.contract.models import CLASSIFIERS, build_classifier
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.joint import TrainableShift
from vit_ptq_bench.methods.quantization.reconstruction.losses import Batch
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableLogStep,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Unit
from vit_ptq_bench.methods.quantization.reconstruction.units import units_of

ALL = (parts.WeightShifts(), parts.WeightScales(), parts.ChannelFactors(), parts.Biases())


def _quantized(name, model, calibration, bits="W4A4", **settings):
    method = METHODS.get(name).create(settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


def _attached(model, images, trainables):
    (whole,) = units_of(model.structure, "model")
    unit = Unit(whole, model.structure, images, images, torch.Generator().manual_seed(0))
    return [place for trainable in trainables for place in trainable.attach(unit)]


def _shaken(places, size):
    """Move everything that is trained at random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for place in places:
            for parameter in place.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def _detached(places):
    for place in reversed(places):
        place.detach(True)


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
def test_without_iterations_it_is_repq_vit(family, images, calibration):
    model = build_classifier(family)
    for still in ({"iterations": 0}, {"weight_rate": 0.0, "scale_rate": 0.0} | {"iterations": 0}):
        qft = _quantized("qft", model, calibration, **still)
        assert torch.equal(qft(images), _quantized("repq-vit", model, calibration)(images))


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
def test_channel_factors_change_nothing_in_full_precision(family, images):
    model = build_classifier(family)
    # Weights are quantized on paper, so that factors have a place, and switched off.
    wrapped = wrap_model(model, equal_table(BitWidth(4, FLOAT)))
    parts.calibrate_weights(wrapped, parts.minmax_rule)
    wrapped.activate(weights=False, activations=False)
    exact = model(images)
    before = {name: value.clone() for name, value in wrapped.state_tensors().items()}
    places = _attached(wrapped, images, (parts.ChannelFactors(),))
    links = len(wrapped.structure.norm_links) + len(wrapped.structure.value_links)
    assert len(places) == links > 4
    _shaken(places, 0.5)
    torch.testing.assert_close(wrapped(images), exact, rtol=1e-4, atol=1e-4)
    _detached(places)
    torch.testing.assert_close(wrapped(images), exact, rtol=1e-4, atol=1e-4)
    after = wrapped.state_tensors()
    moved = [name for name in before if not torch.allclose(before[name], after[name])]
    assert any(name.endswith("qkv.weight") for name in moved)
    assert any(name.endswith("proj.weight") for name in moved if "attn" in name)


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
def test_what_is_folded_is_what_was_trained(family, images, calibration):
    """With everything moved, the model gives the same before and after all is taken out and frozen."""
    model = build_classifier(family)
    wrapped = wrap_model(model, equal_table(BitWidth(4, 4)))
    parts.calibrate_reparameterized(wrapped, calibration)
    wrapped.activate()
    places = _attached(wrapped, images, (*ALL, parts.LogScales(), parts.LogSteps()))
    start = wrapped(images)
    _shaken(places, 0.05)
    trained = wrapped(images)
    assert not torch.allclose(trained, start, atol=1e-2)
    _detached(places)
    wrapped.freeze()
    # A value on the border between two codes may fall to either side.
    assert (wrapped(images) - trained).abs().mean() < 0.02 * (trained - start).abs().mean()


def test_gradients_of_a_weights_scale_are_those_of_lsq():
    """Esser et al., ICLR 2020, equation 3, times the scale: a logarithm is trained."""
    weight = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(1) / 2, weight.amax(1) / 2)
    trained = TrainableShift(quantizer, weight)
    assert torch.equal(trained(weight), quantizer.dequantize(quantizer.quantize(weight)))
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    trained(weight).backward(upstream)
    scale, zero = quantizer.scale[:, None], quantizer.zero_point[:, None]
    low, high = quantizer.code_range
    quotient = weight / scale
    codes = quotient.round() + zero
    inside = (codes >= low) & (codes <= high)
    slope = torch.where(inside, quotient.round() - quotient, codes.clamp(low, high) - zero)
    torch.testing.assert_close(
        trained.log_scale.grad, (upstream * slope * scale).sum(1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(trained.trained.grad, upstream * inside)


def test_gradients_of_an_activations_scale_are_those_of_lsq():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(3), "x")
    quantizer.set_range(x.amin().reshape(1) / 2, x.amax().reshape(1) / 2)
    trained = TrainableLogStep(quantizer, torch.Generator())
    torch.testing.assert_close(trained(x), quantizer.fake_quantize(x))
    trained(x).sum().backward()
    scale, zero = quantizer.scale, quantizer.zero_point
    codes = (x / scale).round() + zero
    inside = (codes >= 0) & (codes <= 7)
    slope = torch.where(inside, (x / scale).round() - x / scale, codes.clamp(0, 7) - zero)
    expected = (slope * scale).sum()
    torch.testing.assert_close(trained.step.grad, expected.reshape(1), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        trained.step.fill_(0.5)
    before = quantizer.scale.clone()
    torch.testing.assert_close(trained.finish().scale, before * math.exp(0.5))


def test_gradients_of_channel_factors_are_those_of_the_loss(images):
    """Against finite differences of the loss, with a fixed error of the weight where rounding would stand."""
    model = build_classifier("vit")
    wrapped = wrap_model(model, equal_table(BitWidth(8, FLOAT)))
    parts.calibrate_weights(wrapped, parts.minmax_rule)
    wrapped.activate(weights=False, activations=False)
    (link,) = [x for x in wrapped.structure.norm_links if x.reader.name == "blocks.1.mlp.fc1"]
    places = _attached(wrapped, images, (parts.ChannelFactors(),))
    place = next(p for p in places if p.link is link)
    noise = 0.1 * torch.randn(link.reader.weight.shape, generator=torch.Generator().manual_seed(2))
    # An error that does not follow the factors, as that of rounding: what the columns weigh counts.
    link.reader.weight_quantizer.register_forward_hook(
        lambda module, inputs, output: output + noise
    )
    exact = model(images)

    def loss():
        return (wrapped(images) - exact).square().mean()

    (factors,) = place.parameters()
    (slope,) = torch.autograd.grad(loss(), factors)
    direction, step = slope / slope.norm(), 1e-2
    with torch.no_grad():
        factors.add_(step * direction)
        above = loss()
        factors.sub_(2 * step * direction)
        below = loss()
    assert float((above - below) / (2 * step)) == pytest.approx(float(slope.norm()), rel=0.02)


def test_the_features_error_is_divided_by_its_mean_square():
    feature = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    found = feature + 1
    batch = Batch(found, feature, lambda x: x, feature, features=feature, features_of=lambda x: x)
    assert float(parts.FeatureError()(batch)) == 1
    assert float(parts.FeatureError(relative=True)(batch)) == pytest.approx(4 / 50)


def test_training_comes_nearer_to_the_original(vit, images, calibration):
    def error(**settings):
        quantized = _quantized("qft", vit, calibration, "W3A3", **settings)
        with torch.no_grad():
            return float((quantized(images) - vit(images)).square().mean())

    start = error(iterations=0)
    rates = {"scale_rate": 1e-2, "factor_rate": 2e-3, "bias_rate": 1e-3, "weight_rate": 1e-3}
    assert error(iterations=60, decay=0.0, **rates) < 0.8 * start
    still = dict.fromkeys(rates, 0.0)
    # Factors alone, without scales that follow them, cross borders between codes both ways.
    for left in ("scale_rate", "bias_rate", "weight_rate"):
        only = still | {left: rates[left]}
        assert error(iterations=60, decay=0.0, **only) < start, left


def test_decay_is_the_share_of_the_output_that_moves(vit, images, calibration):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    parts.calibrate_reparameterized(wrapped, calibration)
    layer = wrapped.module.blocks[0].mlp.fc1
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    places = _attached(wrapped, images, (parts.WeightShifts(decay=3.0),))
    handle.remove()
    place = next(p for p in places if p.operation is layer)
    assert float(place.decay()) == 0
    _shaken([place], 0.1)
    moment = seen[0].flatten(0, -2).square().mean(0)
    moved = place.parameters()[0].detach().square() * moment
    expected = 3 * moved.sum() / (layer.weight.detach().square() * moment).sum()
    assert float(place.decay()) == pytest.approx(float(expected), rel=1e-4)


def test_words_name_what_is_trained():
    notes = METHODS.get("qft").create({"weight_rate": 0.0, "holdout": 0.25}).notes()
    assert notes[-1] == (
        "trains biases, scales, channel factors end to end, 80 iterations of 8 images; a share of 0.25 of "
        "the images judges it"
    )
