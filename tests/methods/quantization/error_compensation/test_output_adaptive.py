"""OAC's second moments against gradients of the weight taken image by image, and where they are GPTQ's."""

import pytest
import torch
import torch.nn.functional as F

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration import memory, output_gradients
from vit_ptq_bench.methods.quantization.calibration.output_gradients import (
    row_gradients,
    row_powers,
)
from vit_ptq_bench.methods.quantization.error_compensation import output_adaptive
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import second_moment
from vit_ptq_bench.methods.quantization.error_compensation.output_adaptive import (
    OutputAdaptive,
    layers_with_gradient,
    output_adaptive_hessian,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model


def _quantize(name, model, calibration, **settings):
    method = METHODS.get(name).create(settings)
    return method.quantize(model, method.bit_table(BitWidth(4, 4)), calibration)


def _codes(model):
    return {op.name: op.codes for op in model.weighted_operations()}


def _same(first, second):
    return all(torch.equal(codes, second[name]) for name, codes in first.items())


def _moments(model, calibration, **settings):
    """The moments of all layers in full precision, and their rows there."""
    hessian_of = output_adaptive_hessian(model, calibration, OutputAdaptive(**settings))
    rows, moments = {}, {}

    def note(layer, inputs):
        rows[layer.name] = layer.columns(inputs[0])
        moments[layer.name] = hessian_of(layer, rows[layer.name])

    handles = [op.register_forward_pre_hook(note) for op in model.weighted_operations()]
    with torch.no_grad():
        model(calibration.whole())
    for handle in handles:
        handle.remove()
    return moments, rows


def _loss_of_image(model, image, generator):
    """Cross entropy of one image to a label that its own prediction draws."""
    logits = model(image)
    label = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)[0]
    return F.cross_entropy(logits, label)


def _of_weights(model, images, generator):
    """2 sum of G'G over images, G being each layer's weight gradient as autograd gives it."""
    layers = model.weighted_operations()
    sums = {layer.name: 0.0 for layer in layers}
    for layer in layers:
        layer.weight.requires_grad_(True)
    for image in images.split(1):
        loss = _loss_of_image(model, image, generator)
        gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            matrix = gradient.flatten(1).double()
            sums[layer.name] = sums[layer.name] + 2 * matrix.T @ matrix
    for layer in layers:
        layer.weight.requires_grad_(False)
    return sums


def _relative(moment):
    return moment / moment.diagonal().sum()


def test_moments_of_samples_are_those_of_each_images_weight_gradient(tiny, images, calibration):
    model = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    found, _ = _moments(model, calibration, mode="samples", batch_size=1)
    expected = _of_weights(model, images, calibration.generator())
    assert found.keys() == expected.keys()
    for name, moment in found.items():
        torch.testing.assert_close(
            _relative(moment), _relative(expected[name]), rtol=1e-3, atol=1e-6, msg=name
        )


def test_moments_of_tokens_weigh_each_row_by_its_gradient(tiny, images, calibration):
    """The gradient at one row: that of a bias which is added to this row alone."""
    model = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    found, rows = _moments(model, calibration, mode="tokens", batch_size=1)
    layer = next(op for op in model.weighted_operations() if op.role == "fc2")
    x = rows[layer.name]
    extra = torch.zeros(len(images), len(x) // len(images), len(layer.weight), requires_grad=True)

    def add(module, inputs, output, number):
        return output + extra[number].view(output.shape)

    generator, total = calibration.generator(), 0.0
    for number, image in enumerate(images.split(1)):
        handle = layer.register_forward_hook(
            lambda module, inputs, output, number=number: add(module, inputs, output, number)
        )
        total = total + _loss_of_image(model, image, generator)
        handle.remove()
    powers = torch.autograd.grad(total, extra)[0].flatten(0, 1).square().sum(1).double()
    expected = 2 * torch.einsum("t,tj,tk->jk", powers / powers.mean(), x.double(), x.double())
    torch.testing.assert_close(found[layer.name], expected, rtol=1e-4, atol=1e-4)


def test_with_one_row_per_image_both_modes_are_the_same(vit, calibration):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    moments = [
        _moments(model, calibration, mode=mode, draws=3)[0] for mode in ("tokens", "samples")
    ]
    head = model.weighted_operations()[-1].name
    torch.testing.assert_close(moments[0][head], moments[1][head], rtol=1e-5, atol=1e-6)
    inner = model.weighted_operations()[2].name
    assert not torch.allclose(moments[0][inner], moments[1][inner], rtol=1e-2)


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_with_unit_gradients_it_is_gptq(damping, tiny, calibration, monkeypatch):
    def ones(model, calibration, layers, draws, batch_size):
        found = row_powers(model, calibration, layers, draws, batch_size)
        return {name: torch.ones_like(powers) for name, powers in found.items()}

    own = _codes(_quantize("oac", tiny, calibration, damping=damping))
    monkeypatch.setattr(output_adaptive, "row_powers", ones)
    alike = _codes(_quantize("oac", tiny, calibration, damping=damping))
    plain = _codes(_quantize("gptq", tiny, calibration, damping=damping))
    assert _same(alike, plain) and not _same(own, plain)


@pytest.mark.parametrize("mode", ["tokens", "samples"])
def test_a_whole_floor_is_gptq(mode, tiny, calibration):
    whole = _quantize("oac", tiny, calibration, mode=mode, floor=1.0, damping=0.01)
    assert _same(_codes(whole), _codes(_quantize("gptq", tiny, calibration)))


def test_half_a_floor_is_half_of_both(vit, calibration):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    for mode in ("tokens", "samples"):
        none, rows = _moments(model, calibration, mode=mode)
        half, _ = _moments(model, calibration, mode=mode, floor=0.5)
        for name, moment in half.items():
            mean = (none[name] + second_moment(rows[name])) / 2
            torch.testing.assert_close(moment, mean, rtol=1e-4, atol=1e-4)


def test_powers_are_those_of_the_gradients_in_every_draw(tiny, calibration):
    model = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    layers = model.weighted_operations()
    powers = row_powers(model, calibration, layers, draws=2, batch_size=3)
    gradients = dict(row_gradients(model, calibration, layers, draws=2, batch_size=3))
    for layer in layers:
        found = gradients[layer.name]
        assert found.shape[:2] == (8, 2) and found.shape[3] == len(layer.weight)
        torch.testing.assert_close(found.square().sum(-1), powers[layer.name])
        assert not torch.equal(found[:, 0], found[:, 1])


def test_groups_that_memory_has_room_for_change_nothing(vit, calibration, monkeypatch):
    whole = _codes(_quantize("oac", vit, calibration, mode="samples"))
    passes, inner = [], output_gradients._gradients

    def counted(*args):
        passes.append(len(args[2]))
        return inner(*args)

    monkeypatch.setattr(output_gradients, "_gradients", counted)
    monkeypatch.setattr(memory, "budget", lambda: 2e5 / output_gradients.RECORDED_SHARE)
    assert _same(_codes(_quantize("oac", vit, calibration, mode="samples")), whole)
    assert len(passes) > 1 and sum(passes) == len(whole)


def test_rounding_by_tokens_leaves_less_where_the_prediction_looks(vit, calibration):
    """Four bits of the weights alone: the error of each layer's rows, weighted by their gradients."""
    errors = {}
    table = equal_table(BitWidth(4, 32))
    exact = wrap_model(vit, table)
    moments, _ = _moments(exact, calibration, mode="tokens", draws=4)
    layer = next(op for op in exact.weighted_operations() if op.role == "fc1")
    for name, settings in (("gptq", {}), ("oac", {"draws": 4, "floor": 0.0})):
        method = METHODS.get(name).create({"damping": 0.01, **settings})
        table = method.bit_table(BitWidth(4, 32))
        model = method.quantize(vit, table, calibration)
        rounded = next(op for op in model.weighted_operations() if op.name == layer.name)
        # With inputs in floating point nothing is folded into the weight.
        lost = (rounded.weight - layer.weight).double()
        errors[name] = float((lost @ moments[layer.name] * lost).sum())
    assert errors["oac"] < errors["gptq"]


@pytest.mark.parametrize("mode", ["tokens", "samples"])
def test_a_layer_that_no_gradient_reaches_is_named(mode, vit, calibration):
    with torch.no_grad():
        vit.blocks[1].mlp.fc2.weight.zero_()
    with pytest.raises(MethodError, match=r"blocks\.1\.mlp\.fc1: the loss has no gradient here"):
        _quantize("oac", vit, calibration, mode=mode)


def test_layers_in_floating_point_need_no_gradient(vit, calibration):
    table = equal_table(BitWidth(4, 4)).change("fc2.weight", bits=32)
    model = wrap_model(vit, table)
    roles = {layer.role for layer in layers_with_gradient(model)}
    assert "fc2" not in roles and {"patch_embed", "qkv", "proj", "fc1", "head"} == roles
    none = wrap_model(vit, equal_table(BitWidth(32, 4)))
    assert layers_with_gradient(none) == []
    rows = torch.randn(5, 32)
    hessian_of = output_adaptive_hessian(none, calibration, OutputAdaptive())
    layer = none.weighted_operations()[1]
    assert torch.equal(hessian_of(layer, rows), second_moment(rows))
