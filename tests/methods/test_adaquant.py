"""AdaQuant: its start, its layers by themselves, and what is trained against closed forms."""

import copy

import pytest
import torch

from vit_ptq_bench.bench.contract.models import build_classifier
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableLogStep,
    TrainableOffset,
)

FAST = {"iterations": 8, "batch_size": 4, "weight_rate": 1e-3, "bias_rate": 1e-2, "step_rate": 1e-2}


def _quantize(name, model, calibration, bits="W4A4", **settings):
    method = METHODS.get(name).create(settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


def _state(model):
    """All that a quantized model consists of, by name."""
    codes = {f"{op.name}.codes": op.codes for op in model.weighted_operations()}
    scales = {site.name: site.quantizer.scale for site in model.sites()}
    return codes | scales | model.state_tensors()


def _differing(first, second):
    first, second = _state(first), _state(second)
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


def test_without_iterations_it_is_its_start(tiny, calibration):
    """The start is RepQ-ViT's on uniform grids with searched attention maps, as of every reconstruction."""
    start = METHODS.get("adaquant").create({"iterations": 0})
    wrapped = wrap_model(tiny, start.bit_table(BitWidth(4, 4)))
    parts.calibrate_reparameterized(wrapped, calibration)
    wrapped.activate()
    with torch.no_grad():
        parts.search_maps(wrapped.operations, lambda: wrapped(calibration.whole()))
    wrapped.freeze()
    none = _quantize("adaquant", tiny, calibration, iterations=0, batch_size=4)
    assert _differing(none, wrapped) == set()
    still = {**FAST, "weight_rate": 0.0, "bias_rate": 0.0, "step_rate": 0.0}
    assert _differing(_quantize("adaquant", tiny, calibration, **still), wrapped) == set()


@pytest.mark.parametrize(
    ("rate", "endings"),
    [
        ("weight_rate", (".codes", ".weight")),
        ("bias_rate", (".bias",)),
        ("step_rate", (".codes", ".weight", ".input", ".scale", ".zero_point")),
    ],
)
def test_each_rate_trains_what_it_is_of(rate, endings, vit, calibration):
    still = {**FAST, "weight_rate": 0.0, "bias_rate": 0.0, "step_rate": 0.0}
    start = _quantize("adaquant", vit, calibration, **still)
    moved = _differing(start, _quantize("adaquant", vit, calibration, **still | {rate: FAST[rate]}))
    assert moved and all(name.endswith(endings) for name in moved)
    layers = {op.name for op in start.weighted_operations()}
    touched = {layer for layer in layers if any(name.startswith(f"{layer}.") for name in moved)}
    assert touched == layers


def test_scales_of_weights_and_inputs_move_by_at_most_their_rate(vit, calibration):
    """A step of Adam is about its rate: the logarithm moves by no more than all rates together."""
    start = _quantize("adaquant", vit, calibration, **FAST | {"iterations": 0})
    trained = _quantize("adaquant", vit, calibration, **FAST)
    scales = {site.name: site.quantizer.scale for site in start.sites()}
    moves = {
        site.name: (site.quantizer.scale / scales[site.name]).log().abs().max()
        for site in trained.sites()
    }
    layers = {q.site for op in start.weighted_operations() for q in op.quantizers().values()}
    assert {name for name, move in moves.items() if move > 0} == layers
    assert max(moves.values()) < 1.2 * FAST["iterations"] * FAST["step_rate"]


def test_a_layer_knows_nothing_of_the_layers_behind_it(vit, calibration):
    """Another head and another last fc2: what comes before them is trained to the same bits."""
    other = copy.deepcopy(vit)
    with torch.no_grad():
        other.blocks[1].mlp.fc2.weight.mul_(-2)
        other.head.weight.add_(0.3)
    models = [_quantize("adaquant", each, calibration, **FAST) for each in (vit, other)]
    changed = _differing(*models)
    behind = ("blocks.1.mlp.fc2.", "norm.", "head.")
    assert changed and all(name.startswith(behind) for name in changed)


@pytest.mark.parametrize("sequential", [True, False])
def test_on_full_precision_inputs_no_layer_knows_what_became_of_another(
    sequential, vit, calibration
):
    """The authors' parallel variant: coarser scales of one layer change the codes of no other one."""
    codes = []
    for factor in (1.0, 1.5):
        method = METHODS.get("adaquant").create({**FAST, "sequential": sequential})
        wrapped = wrap_model(vit, method.bit_table(BitWidth(4, 4)))
        parts.calibrate_reparameterized(wrapped, calibration)
        coarse = wrapped.weighted_operations()[1].weight_quantizer
        coarse.set_parameters(coarse.scale * factor, coarse.zero_point)
        parts.reconstruct(wrapped, calibration, method.recipe())
        codes.append({op.name: op.codes for op in wrapped.weighted_operations()})
    changed = {name for name, own in codes[0].items() if not torch.equal(own, codes[1][name])}
    if sequential:
        assert len(changed) > 5
    else:
        assert changed == {"blocks.0.attn.qkv"}


def test_training_lowers_the_error_of_each_layer_on_its_quantized_input(vit, images, calibration):
    exact = wrap_model(vit, equal_table(BitWidth(32, 32)))
    targets = {}
    for op in exact.weighted_operations():
        op.register_forward_hook(lambda op, x, y: targets.update({op.name: y}))
    errors = []
    for iterations in (0, 100):
        settings = {"iterations": iterations, "batch_size": 8, "weight_rate": 1e-4}
        model = _quantize("adaquant", vit, calibration, "W3A8", **settings)
        outputs = {}
        for op in model.weighted_operations():
            op.register_forward_hook(lambda op, x, y, to=outputs: to.update({op.name: y}))
        with torch.no_grad():
            exact(images), model(images)
        errors.append([float((outputs[n] - y).square().mean()) for n, y in targets.items()])
    before, after = (torch.tensor(e) for e in errors)
    assert (after < before).float().mean() > 0.8 and after.sum() < 0.9 * before.sum()


def _of_layer(model, name, images):
    """One layer of a model with its input and its output for the images."""
    layer = next(op for op in model.weighted_operations() if op.name == name)
    seen = []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    with torch.no_grad():
        model(images)
    handle.remove()
    return layer, *seen[0]


def test_a_trained_bias_alone_is_the_mean_residual(images, calibration):
    """Least squares in closed form: the bias that is left makes up for the mean error of each output."""
    model = build_classifier("vit", depth=1)
    settings = {"iterations": 200, "batch_size": 8, "weight_rate": 0.0, "step_rate": 0.0}
    trained, start = (
        _quantize("adaquant", model, calibration, "W3A4", bias_rate=rate, **settings)
        for rate in (3e-2, 0.0)
    )
    exact = wrap_model(model, equal_table(BitWidth(32, 32)))
    name = "blocks.0.attn.qkv"  # what comes before it has been trained too
    _, _, target = _of_layer(exact, name, images)
    own, x, _ = _of_layer(trained, name, images)
    untrained, _, _ = _of_layer(start, name, images)
    with torch.no_grad():
        residual = (target - untrained(x)).flatten(0, 1).mean(0)
    assert residual.abs().max() > 0.02
    torch.testing.assert_close(own.bias, untrained.bias + residual, rtol=0, atol=2e-3)


def _activation(seed=0):
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed))
    quantizer = UniformQuantizer(TensorSpec(3), "x")
    quantizer.set_range(x.amin().reshape(1) / 2, x.amax().reshape(1) / 2)
    return x, quantizer


def test_a_log_step_starts_at_the_step_and_has_its_gradient():
    x, quantizer = _activation()
    trained = TrainableLogStep(quantizer, torch.Generator())
    assert torch.equal(trained(x), quantizer.fake_quantize(x))
    trained(x).sum().backward()
    # d/dlog s of s (code - z) is s times LSQ's: round(x / s) - x / s inside, the code's level outside.
    scale, zero = quantizer.scale, quantizer.zero_point
    codes = torch.round(x / scale) + zero
    inside = (codes >= 0) & (codes <= 7)
    slope = torch.where(inside, torch.round(x / scale) - x / scale, codes.clamp(0, 7) - zero)
    torch.testing.assert_close(trained.step.grad, scale * slope.sum(), rtol=1e-4, atol=1e-5)
    before = quantizer.scale.clone()
    trained.step.data.fill_(0.1)
    assert torch.equal(trained.finish().scale, before * torch.tensor(0.1).exp())


def test_a_weight_on_trained_scales_ends_as_the_codes_of_those_scales():
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(1) / 2, weight.amax(1) / 2)
    trained = TrainableOffset(quantizer, weight)
    plain = trained(weight)
    trained.log_scale = torch.nn.Parameter(torch.zeros(6))
    assert torch.equal(trained(weight), plain)
    trained.log_scale.data.copy_(torch.linspace(-0.2, 0.2, 6))
    found = trained(weight)
    found.sum().backward()
    assert (trained.log_scale.grad != 0).all() and (trained.trained.grad != 0).any()
    quantizer.set_parameters(quantizer.scale * trained.log_scale.exp(), quantizer.zero_point)
    torch.testing.assert_close(found.detach(), quantizer.dequantize(trained.codes(weight)))
