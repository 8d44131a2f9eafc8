"""Starts in closed form: what they leave open, and what goes on from them."""

import pytest
import torch

from vit_ptq_bench.bench.contract.models import build_classifier
from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import identity_of
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.error_compensation.resolve import in_cells
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer


def _quantized(name, model, calibration, bits="W4A4", **settings):
    method = METHODS.get(name).create(settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


def test_open_weights_round_to_the_codes_that_were_found():
    weight = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(dim=1) * 0.7, weight.amax(dim=1) * 0.7)
    codes = torch.randint(0, 8, (5, 30), generator=torch.Generator().manual_seed(1))
    kept = in_cells(quantizer, weight, codes.int())
    assert torch.equal(quantizer.quantize(kept), codes.int())
    middle = quantizer.dequantize(codes.int())
    inside = (weight - middle).abs() < 0.19 * quantizer.scale[:, None]
    assert bool(inside.any()) and torch.equal(kept[inside], weight[inside])


@torch.no_grad()
def test_a_start_that_is_left_open_computes_what_the_frozen_one_does(vit, images, calibration):
    table = METHODS.get("rose").create().bit_table(BitWidth(4, 4))
    outputs = []
    for keep_open in (False, True):
        model = parts.wrap_model(vit, table)
        resolve = parts.Resolve(parts.Strength(2.0), keep_open=keep_open)
        parts.calibrate_closed_form(model, calibration, parts.ClosedForm(resolve=resolve))
        assert all(layer.frozen is not keep_open for layer in model.weighted_operations())
        model.freeze()
        outputs.append(model(images))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mgrq_begins_where_rose_ends(vit, images, calibration):
    rose = _quantized("rose", vit, calibration)(images)
    assert torch.equal(_quantized("mgrq", vit, calibration, block=False)(images), rose)
    untrained = _quantized("mgrq", vit, calibration, iterations=0, batch_size=4)(images)
    torch.testing.assert_close(untrained, rose, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bits_enough_change_nothing_whatever_is_switched_off(vit, images, calibration):
    exact = vit(images)
    switches = ("rotate_residual", "shift_norms", "rotate_heads", "equalise_heads", "token_weights")
    for off in switches:
        quantized = _quantized("rose", vit, calibration, "W8A32", **{off: False})
        error = (quantized(images) - exact).norm() / exact.norm()
        assert error < 0.05, off


@pytest.mark.parametrize("weights", ["columnwise", "nearest"])
@pytest.mark.parametrize("target", ["stream", "layer"])
@torch.no_grad()
def test_every_rounding_and_target_runs(vit, images, calibration, weights, target):
    quantized = _quantized("rose", vit, calibration, weights=weights, target=target, ridge=None)
    assert bool(torch.isfinite(quantized(images)).all())


def test_fewer_images_than_folds_are_refused_before_any_work(vit, images):
    calibration = Calibration([images[:3]])
    with pytest.raises(MethodError, match="3 calibration images cannot be cut into 4 folds"):
        _quantized("rose", vit, calibration, ridge=None)
    with pytest.raises(MethodError, match="3 calibration images cannot be cut into 4 folds"):
        _quantized("marr", vit, calibration)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_the_profile_train_moves_norms_and_biases_alone(family, share, images):
    model = build_classifier(family)
    many = torch.cat([images, images.flip(-1)])
    solved_on, trained_on = (many[: len(images)], many[len(images) :]) if share else (many, many)
    settings = {
        "trained_share": share,
        "profile": "train",
        "iterations": 120,
        "batch_size": 8,
        "affine_rate": 1e-3,
        "scale_rate": 0.0,
        "views": 1,
    }
    solved = _quantized("rose", model, Calibration([solved_on]), "W3A3")
    trained = _quantized("rose", model, Calibration([many]), "W3A3", **settings)
    moved = set()
    for (name, first), second in zip(
        solved.state_dict().items(), trained.state_dict().values(), strict=True
    ):
        if not torch.equal(first, second):
            moved.add(name.rpartition(".")[2])
            assert name.endswith("bias") or "norm" in name, name
    assert moved == {"weight", "bias"}

    @torch.no_grad()
    def divergence(quantized):
        outputs = (f(trained_on).log_softmax(-1) for f in (quantized, model))
        return float(torch.nn.functional.kl_div(*outputs, log_target=True, reduction="sum"))

    if share:  # images that were solved on are fitted to the rounding: any step away costs there
        assert divergence(trained) < divergence(solved)


@torch.no_grad()
def test_training_moves_scales_of_weights_where_asked_and_holds_their_codes(vit, images):
    settings = {
        "profile": "train",
        "iterations": 4,
        "batch_size": 8,
        "views": 2,
        "scale_rate": 1e-3,
    }
    solved = _quantized("rose", vit, Calibration([images]), "W3A3")
    trained = _quantized("rose", vit, Calibration([images]), "W3A3", **settings)
    for before, after in zip(
        solved.weighted_operations(), trained.weighted_operations(), strict=True
    ):
        assert torch.equal(before.codes, after.codes)
        rows = (len(after.weight), -1)
        share = after.weight_quantizer.scale / before.weight_quantizer.scale
        assert (share != 1).any() and (share - 1).abs().max() < 4 * 2e-3
        torch.testing.assert_close(
            after.weight.view(rows), before.weight.view(rows) * share.view(-1, 1)
        )
        assert torch.equal(after.weight_quantizer.fake_quantize(after.weight), after.weight)
    rose = METHODS.get("rose")
    assert "trains LayerNorms, biases and scales of weights, 4" in rose.create(settings).notes()[-1]
    usual = rose.create({"profile": "train"}).notes()[-1]
    assert usual.startswith("trains LayerNorms and biases, 60 iterations of 16 images")


def test_settings_that_were_added_identify_the_runs_that_set_them_alone(monkeypatch):
    rose = METHODS.get("rose")
    profiles = {"train": {**rose.profiles["train"], "views": 7}}
    monkeypatch.setattr(rose, "profiles", profiles)
    assert not {"scale_rate", "views"} & set(identity_of(rose.create().parameters, rose.profiles))
    for settings in ({"views": 2}, {"profile": "train"}, {"profile": "train", "views": 1}):
        made = rose.create(settings)
        told = identity_of(made.parameters, rose.profiles)
        assert told["views"] == made.parameters.views and "scale_rate" not in told
        assert rose.create(told).parameters == made.parameters


def test_the_profile_train_needs_a_batch_of_images_to_train_on(vit, images):
    with pytest.raises(MethodError, match="batches of 16 images needs at least as many"):
        _quantized("rose", vit, Calibration([images[:1]]), profile="train")
    with pytest.raises(MethodError, match="batches of 16 images needs at least as many"):
        _quantized("rose", vit, Calibration([images]), profile="train", trained_share=0.5)
