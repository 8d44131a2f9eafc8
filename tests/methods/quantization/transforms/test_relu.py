"""ReLU in the place of GELU: the fit, what a file says of it, and what is refused."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.methods.quantization.transforms.models import classifier
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization import storage
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.activation import ReluActivation, mlps_of
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.transforms.apply import apply_transforms
from vit_ptq_bench.methods.quantization.transforms.relu import ReluFit, refit_relu


@pytest.fixture
def many():
    """More images than the hidden layer has channels to fit."""
    images = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    return Calibration([images], seed=3)


def _refitted(model, calibration, **settings):
    wrapped = wrap_model(model, equal_table(BitWidth(4, 4)))
    refit_relu(wrapped, calibration, ReluFit(**settings))
    return wrapped


@torch.no_grad()
def _error(model, original, calibration):
    images = calibration.whole()
    return float((model(images) - original(images)).square().mean())


def test_every_gelu_is_replaced_and_the_input_of_fc2_is_not_negative(tiny, images, calibration):
    model = _refitted(tiny, calibration)
    blocks = len(model.structure.blocks)
    assert len(mlps_of(model)) == blocks
    assert sum(isinstance(m, ReluActivation) for m in model.modules()) == blocks
    assert not any(isinstance(m, nn.GELU) for m in model.modules())
    lows = []
    for op in model.operations:
        if op.role == "fc2":
            op.register_forward_pre_hook(lambda _, inputs: lows.append(float(inputs[0].min())))
    with torch.no_grad():
        model(images)
    assert len(lows) == blocks and min(lows) >= 0


def test_the_fit_brings_the_outputs_back(vit, many):
    bare = wrap_model(vit, equal_table(BitWidth(4, 4)))
    for mlp in mlps_of(bare):
        mlp.use_relu()
    closed = _refitted(vit, many)
    trained = _refitted(vit, many, iterations=40, rate=1e-3, batch_size=16)
    errors = [_error(model, vit, many) for model in (bare, closed, trained)]
    assert max(errors[1:]) < 0.3 * errors[0]
    assert trained.module.blocks[0].mlp.fc1.weight.ne(vit.blocks[0].mlp.fc1.weight).any()


@pytest.mark.parametrize("name", ["vit", "layer scale"])
@torch.no_grad()
def test_each_fit_is_numpys_for_what_the_mlps_before_it_leave_of_the_original_stream(name, many):
    vit = classifier(name)
    closed = _refitted(vit, many).module
    exact = new = vit.norm_pre(vit._pos_embed(vit.patch_embed(many.whole())))
    for block, found in zip(vit.blocks, closed.blocks, strict=True):
        middle = exact + block.ls1(block.attn(block.norm1(exact)))
        behind = middle + block.ls2(block.mlp(block.norm2(middle)))
        before = new + found.ls1(found.attn(found.norm1(new)))
        tokens = found.norm2(before).flatten(0, -2)
        wanted = (behind - before) / getattr(block.ls2, "gamma", 1)
        _check_fit(block.mlp, found.mlp, tokens, wanted.flatten(0, -2), behind)
        exact, new = behind, found(new)


def _check_fit(old, new, tokens, target, behind):
    before = old.act(old.fc1(tokens))
    positive = before[before > 0].sort().values
    top = positive[max(0, -(-99 * len(positive) // 100) - 1)]
    hidden = old.fc1(tokens).relu()
    rows = torch.cat([hidden, hidden.clamp_max(top)]).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    weight = 1 / behind.flatten(0, -2).square().sum(1).double()
    share = torch.cat([weight, 2 * weight]).sqrt()[:, None]
    start = torch.cat([old.fc2.weight, old.fc2.bias[:, None]], dim=1).double()
    missing = (target.double().repeat(2, 1) - rows @ start.T) * share
    scaled = rows * share
    cost = (0.1 * scaled.square().sum(0).mean()).sqrt() * torch.eye(rows.shape[1]).double()
    stacked = torch.cat([scaled, cost])
    wanted = torch.linalg.lstsq(stacked, torch.cat([missing, torch.zeros(len(cost), 32).double()]))
    found = torch.cat([new.fc2.weight, new.fc2.bias[:, None]], dim=1).double()
    torch.testing.assert_close(found - start, wanted.solution.T, rtol=1e-2, atol=1e-4)


def test_where_the_output_of_gelu_is_not_quantized_nothing_is_replaced(vit, images, calibration):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 32)))
    refit_relu(wrapped, calibration, ReluFit())
    with torch.no_grad():
        torch.testing.assert_close(wrapped(images), vit(images), rtol=0, atol=1e-5)


def test_a_saved_model_says_that_the_activation_changed(tiny, images, calibration, tmp_path):
    method = METHODS.get("glf-q").create({"iterations": 1, "batch_size": 4})
    assert any("another operation" in note for note in method.notes())
    table = method.bit_table(BitWidth(4, 4))
    model = method.quantize(copy.deepcopy(tiny), table, calibration)
    path = tmp_path / "model.safetensors"
    storage.save_quantized(model, path, {})
    loaded = storage.load_quantized(path, tiny)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert sum(isinstance(m, ReluActivation) for m in loaded.modules()) == len(mlps_of(model))
    plain = METHODS.get("glf-q").create({"relu": False})
    assert not any("another operation" in note for note in plain.notes())


def test_a_mark_that_is_not_one_is_refused(vit, calibration, tmp_path):
    method = METHODS.get("glf-q").create({"iterations": 0, "batch_size": 4})
    model = method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)
    model.module.blocks[1].mlp.act.is_relu.fill_(0)
    path = tmp_path / "model.safetensors"
    storage.save_quantized(model, path, {})
    with pytest.raises(MethodError, match=r"blocks\.1\.mlp\.act has a mark of ReLU that is not 1"):
        storage.load_quantized(path, vit)
    assert "blocks.0.mlp.act.is_relu" in load_file(path)


def test_a_model_without_gelu_is_refused_in_words(vit, calibration):
    for block in vit.blocks:
        block.mlp.act = nn.Tanh()
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    with pytest.raises(MethodError, match="no MLP with a GELU"):
        refit_relu(wrapped, calibration, ReluFit())


def test_as_a_transform_it_stands_in_front_of_any_method_and_says_that_it_changes_the_operation(
    tiny, images, calibration, tmp_path
):
    method = METHODS.get("rose").create().with_transforms(["refit-relu", "rotate-heads"])
    table = method.bit_table(BitWidth(4, 4))
    words = (
        "transformed first: refit-relu, then rotate-heads; GELU replaced by ReLU: another operation"
    )
    assert words in method.convention(table)
    assert "another operation" not in METHODS.get("rose").create().convention(table)
    model = method.quantize(tiny, table, calibration)
    assert sum(isinstance(m, ReluActivation) for m in model.modules()) == len(mlps_of(model)) > 0
    assert not any(isinstance(m, ReluActivation) for m in tiny.modules())
    storage.save_quantized(model, tmp_path / "model.safetensors", {})
    loaded = storage.load_quantized(tmp_path / "model.safetensors", tiny)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@torch.no_grad()
def test_the_transform_is_the_fit_of_the_profile_fast(vit, images, calibration):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    apply_transforms(wrapped, ["refit-relu"], calibration)
    assert torch.equal(wrapped(images), _refitted(vit, calibration)(images))


def test_the_transform_is_refused_where_there_is_nothing_to_replace(vit, calibration):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 32)))
    with pytest.raises(
        MethodError, match=r"refit-relu: the input of fc2 is left in floating point"
    ):
        apply_transforms(wrapped, ["refit-relu"], calibration)
    for block in vit.blocks:
        block.mlp.act = nn.Tanh()
    method = METHODS.get("minmax").create().with_transforms(["refit-relu"])
    reason = method.supports(vit, method.bit_table(BitWidth(4, 4)))
    assert reason.startswith("refit-relu: the model has no MLP with a GELU")
    assert reason.endswith("leave refit-relu out for this model")


@pytest.mark.parametrize("name", ["aphq-vit", "glf-q"])
def test_methods_that_fit_relu_decline_a_model_without_gelu(name, vit):
    method = METHODS.get(name).create()
    table = method.bit_table(BitWidth(4, 4))
    assert method.supports(vit, table) is None
    for block in vit.blocks:
        block.mlp.act = nn.Tanh()
    reason = method.supports(vit, table)
    assert reason.endswith("ReLU could replace; leave the MLP reconstruction out (relu = false)")
    assert METHODS.get(name).create({"relu": False}).supports(vit, table) is None
