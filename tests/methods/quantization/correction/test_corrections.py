"""Corrections of blocks: the regression against numpy, planted errors, and what must not change."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ptq_bench.bench.contract.models import sharpened
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.correction.blocks import correct_blocks, fold_corrections
from vit_ptq_bench.methods.quantization.correction.regression import Regression
from vit_ptq_bench.methods.quantization.model.correction import attach_correction
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized

FLOATING = equal_table(BitWidth(32, 32))
CPU = torch.device("cpu")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def many(generator):
    """More tokens than any layer of the tiny models has inputs."""
    return Calibration([torch.randn(48, 3, 16, 16, generator=generator)])


def _by_numpy(x, y, ridge, weights=None):
    """Ridge regression with a free bias, as least squares on stacked equations (float64)."""
    x, y = x.double().numpy(), y.double().numpy()
    weights = np.ones(len(x)) if weights is None else weights.double().numpy()
    mean_x, mean_y = (np.average(z, axis=0, weights=weights) for z in (x, y))
    root = np.sqrt(weights)[:, None]
    centred = root * (x - mean_x)
    strength = ridge * (centred**2).sum() / x.shape[1]
    rows = np.vstack([centred, strength**0.5 * np.eye(x.shape[1])])
    wanted = np.vstack([root * (y - mean_y), np.zeros((x.shape[1], y.shape[1]))])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    return weight, mean_y - weight @ mean_x


def _data(generator, images=6, rows=40, inputs=5, outputs=3):
    x = torch.randn(images, rows, inputs, generator=generator) + 2
    y = x @ torch.randn(inputs, outputs, generator=generator) + 0.5
    return x, y + 0.3 * torch.randn(y.shape, generator=generator)


def _regression(x, y, weights=None):
    found = Regression(x.shape[-1], y.shape[-1], CPU)
    found.add(x, y, weights)
    return found


@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
def test_regression_is_that_of_numpy_with_weights_too(ridge, generator):
    x, y = _data(generator)
    uneven = torch.rand(x.shape[:2], generator=generator)
    for weights in (None, uneven, (uneven < 0.7).float()):
        found = _regression(x, y, weights).solve(ridge)
        rows = None if weights is None else weights.flatten()
        weight, bias = _by_numpy(x.flatten(0, 1), y.flatten(0, 1), ridge, rows)
        np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.bias.numpy(), bias, rtol=1e-4, atol=1e-5)


def test_share_removed_is_that_of_the_images_left_out(generator):
    x, y = _data(generator)
    left = 0.0
    for fitted, judged in (
        (slice(0, None, 2), slice(1, None, 2)),
        (slice(1, None, 2), slice(0, None, 2)),
    ):
        weight, bias = _by_numpy(x[fitted].flatten(0, 1), y[fitted].flatten(0, 1), 0.1)
        residual = y[judged].numpy() - x[judged].numpy() @ weight.T - bias
        left += (residual**2).sum()
    wanted = 1 - left / float(y.square().sum())
    assert _regression(x, y).share_removed(0.1) == pytest.approx(wanted, rel=1e-4)


def test_what_removes_nothing_elsewhere_is_no_correction(generator):
    x = torch.randn(4, 20, 15, generator=generator)
    noise = torch.randn(4, 20, 3, generator=generator)
    assert _regression(x, noise).solve(0.01) is None  # fits its images, not the others
    assert _regression(x, torch.zeros(4, 20, 3)).solve(0.01) is None
    assert _regression(x, x[..., :3]).solve(0.01) is not None
    with pytest.raises(MethodError, match="larger ridge"):
        _regression(torch.ones(4, 20, 5), noise).solve(0.0)


@torch.no_grad()
def test_a_correction_of_zero_changes_nothing(tiny, images):
    model = wrap_model(tiny, FLOATING)
    before = model(images)
    blocks = [segment for segment in model.structure.segments if segment.kind == "block"]
    for segment in blocks:
        attach_correction(model, segment)
    assert torch.equal(model(images), before)
    assert len(blocks) == len(model.structure.blocks)
    with pytest.raises(MethodError, match="only transformer blocks"):
        attach_correction(model, model.structure.segments[0])


def _planted(model, modules, generator):
    """Make modules lack a linear function of their input whenever the model counts as quantized."""
    flag = model.operations[0].weight_quantizer

    def plant(module, width, outputs):
        weight = 0.3 * torch.randn(outputs, width, generator=generator) / width**0.5
        bias = 0.3 * torch.randn(outputs, generator=generator)

        def lack(_, inputs, output):
            return output - (inputs[0] @ weight.T + bias) if flag.active else output

        module.register_forward_hook(lack)
        return weight, bias

    return [plant(*module) for module in modules]


@torch.no_grad()
def test_planted_errors_of_blocks_are_recovered(tiny, images, many, generator):
    model = wrap_model(tiny, FLOATING)
    blocks = [segment for segment in model.structure.segments if segment.kind == "block"]
    modules = [model.module.get_submodule(segment.name) for segment in blocks]
    widths = [segment.operations[0].weight.shape[1] for segment in blocks]
    planted = _planted(model, zip(modules, widths, widths, strict=True), generator)
    model.activate()
    before = model(images)
    assert correct_blocks(model, many, ridge=1e-6) == len(blocks)
    for module, (weight, bias) in zip(modules, planted, strict=True):
        if module is modules[0] and isinstance(model.module.patch_embed.norm, nn.LayerNorm):
            continue  # what an affine LayerNorm gives has a direction without variance
        torch.testing.assert_close(module.correction.weight.float(), weight, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(module.correction.bias.float(), bias, rtol=2e-3, atol=5e-3)
    exact = tiny(images)
    assert (model(images) - exact).norm() < 0.01 * (before - exact).norm()


@torch.no_grad()
def test_planted_errors_of_last_layers_are_folded_away(tiny, images, many, generator):
    """Also where windows move and pad the tokens between the layer and the residual stream."""
    model = wrap_model(tiny, FLOATING)
    layers = [op for op in model.operations if op.role in ("proj", "fc2")]
    before = [(op.weight.clone(), op.bias.clone()) for op in layers]
    planted = _planted(model, [(op, *op.weight.shape[::-1]) for op in layers], generator)
    assert fold_corrections(model, many, ridge=1e-6) == len(layers)
    for layer, (weight, bias), (more, offset) in zip(layers, before, planted, strict=True):
        torch.testing.assert_close(layer.weight, weight + more, rtol=0, atol=5e-3)
        torch.testing.assert_close(layer.bias, bias + offset, rtol=0, atol=5e-3)
    model.activate()
    torch.testing.assert_close(model(images), tiny(images), rtol=0, atol=2e-2)


@torch.no_grad()
def test_a_factor_per_channel_behind_the_layer_is_undone(many, generator):
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = sharpened(VisionTransformer(num_classes=10, init_values=0.3, **shape), seed=1)
    model.blocks[0].ls1.gamma.uniform_(0.2, 2.0, generator=generator)
    wrapped = wrap_model(model, FLOATING)
    proj = next(op for op in wrapped.operations if op.role == "proj")
    before = proj.weight.clone()
    ((weight, _),) = _planted(wrapped, [(proj, 32, 32)], generator)
    fold_corrections(wrapped, many, ridge=1e-6)
    torch.testing.assert_close(proj.weight, before + weight, rtol=0, atol=5e-3)


@torch.no_grad()
def test_the_folded_form_is_the_ridge_regression_of_numpy(vit, many):
    method = METHODS.get("repq-vit").create({})
    table = method.bit_table(BitWidth(4, 4))
    model = wrap_model(vit, table)
    method.calibrate(model, many)
    images = many.whole()
    # The first half of the first block: what proj sees and what the stream behind it lacks.
    embed, block = model.structure.segments[:2]
    half, proj = block.halves[0], next(op for op in block.operations if op.role == "proj")
    model.activate(weights=False, activations=False)
    exact = half.run(embed.run(images))
    model.activate()
    start = embed.run(images)
    proj.weight_quantizer.active = False
    seen = []
    handle = proj.register_forward_hook(lambda m, i, o: seen.append(m.input_quantizer(i[0])))
    lack = exact - half.run(start)
    handle.remove()
    old = proj.weight.clone(), proj.bias.clone()
    counts = 1 / exact.square().mean(-1).flatten()
    weight, bias = _by_numpy(seen[0].flatten(0, 1), lack.flatten(0, 1), 0.5, counts)
    fold_corrections(model, many, ridge=0.5)
    np.testing.assert_allclose((proj.weight - old[0]).numpy(), weight, atol=2e-5)
    np.testing.assert_allclose((proj.bias - old[1]).numpy(), bias, atol=2e-5)


@pytest.mark.parametrize("base", ["repq-vit", "ptq4vit"])
@torch.no_grad()
def test_both_forms_lower_the_error_of_their_base(base, vit, images, many):
    def error(name, settings, calibration):
        method = METHODS.get(name).create(settings)
        quantized = method.quantize(vit, method.bit_table(BitWidth(3, 3)), calibration)
        return float((quantized(images) - vit(images)).square().mean())

    alone = error(base, {}, many.first(4))
    for form in ("layer", "folded"):
        settings = {"base": base, "form": form, "ridge": 0.5, "base_images": 4}
        assert error("qwt", settings, many) < alone


def test_the_file_counts_the_layers_and_loads_them(vit, images, many, tmp_path):
    sizes = {}
    for form in ("layer", "folded"):
        method = METHODS.get("qwt").create({"form": form, "ridge": 0.5})
        quantized = method.quantize(vit, method.bit_table(BitWidth(3, 3)), many)
        sizes[form] = save_quantized(quantized, tmp_path / form, {})
        again = load_quantized(tmp_path / form, vit)
        with torch.no_grad():
            assert torch.equal(again(images), quantized(images))
    numbers = 2 * (32 * 32 + 32)  # two blocks of width 32
    assert 2 * numbers <= sizes["layer"] - sizes["folded"] < 2 * numbers + 1000


def test_one_image_is_refused_before_any_pass(vit, images):
    model = wrap_model(vit, FLOATING)
    for correct in (correct_blocks, fold_corrections):
        with pytest.raises(MethodError, match="at least 2 calibration images"):
            correct(model, Calibration([images[:1]]), 0.01)
