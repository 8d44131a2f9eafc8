"""Progressive reconstruction: the order of units, open weights, and what is refused."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from vit_ptq_bench.bench.contract.models import sharpened
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.reconstruction.engine import Engine
from vit_ptq_bench.methods.quantization.reconstruction.units import run_all, units_of

TRAINED = (parts.Weights(2e-3), parts.Steps(1e-3))


def _recipe(unit, iterations=2, **settings):
    shown = {"trainables": TRAINED, "batch_size": 4, "input_mix": 1.0, "keep": 1.0}
    return parts.Recipe(unit=unit, iterations=iterations, **shown | settings)


def _calibrated(model, calibration, bits=3):
    wrapped = wrap_model(model, equal_table(BitWidth(bits, bits)))
    parts.calibrate_reparameterized(wrapped, calibration)
    return wrapped


def _vit(depth):
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "embed_dim": 32, "num_heads": 2}
    model = VisionTransformer(img_size=16, num_classes=10, depth=depth, **sizes)
    return sharpened(model, seed=1)


@pytest.fixture(scope="module")
def swin():
    """Two stages, of three blocks and of two."""
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "embed_dim": 16, "num_heads": (2, 4), "window_size": 4}
    return sharpened(SwinTransformer(img_size=16, num_classes=10, depths=(3, 2), **sizes), seed=1)


def _watched(monkeypatch):
    """The units that are trained, in order, with what is handed to each."""
    seen = []
    attempt = Engine._attempt

    def watched(self, step, exact, streams, target, size):
        seen.append((self.recipe.unit, step.unit.name, streams, target))
        attempt(self, step, exact, streams, target, size)

    monkeypatch.setattr(Engine, "_attempt", watched)
    return seen


@torch.no_grad()
def test_disjoint_pairs_hold_every_block_once_and_stay_within_a_resolution(swin, images):
    structure = wrap_model(swin, equal_table(BitWidth(4, 4))).structure
    units = units_of(structure, "disjoint-pair")
    blocks = [unit.name for unit in units if unit.kind == "block"]
    first, second, third, fourth, fifth = structure.blocks
    assert blocks == [f"{first}..{second}", third, f"{fourth}..{fifth}"]
    assert [op for unit in units for op in unit.operations] == structure.operations
    torch.testing.assert_close(run_all(units, images), swin(images), rtol=0, atol=1e-5)


def test_parts_come_before_the_whole_and_the_next_block_behind_both(swin, calibration, monkeypatch):
    seen = _watched(monkeypatch)
    model = _calibrated(swin, calibration)
    recipes = [_recipe("half"), _recipe("block"), _recipe("disjoint-pair")]
    parts.reconstruct_progressively(model, calibration, recipes)
    names = [(unit, name.replace("layers.", "").replace(".blocks", "")) for unit, name, *_ in seen]

    def block(name):
        return [("half", f"{name}.attn"), ("half", f"{name}.mlp"), ("block", name)]

    merging = [name for name in names if name[1].endswith("downsample")]
    assert merging == [("half", "1.downsample")]
    assert [name for name in names if name not in merging] == [
        ("half", names[0][1]),
        *block("0.0"),
        *block("0.1"),
        ("disjoint-pair", "0.0..0.1"),
        *block("0.2"),
        *block("1.0"),
        *block("1.1"),
        ("disjoint-pair", "1.0..1.1"),
        ("half", "head"),
    ]


def test_layers_are_the_first_parts_of_halves(calibration, monkeypatch):
    seen = _watched(monkeypatch)
    recipes = [_recipe("layer"), _recipe("half")]
    parts.reconstruct_progressively(_calibrated(_vit(1), calibration), calibration, recipes)
    attention = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.attn"]
    mlp = ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.mlp"]
    assert [name for _, name, *_ in seen] == ["patch_embed", *attention, *mlp, "head"]


def test_a_unit_gets_what_is_finished_and_aims_at_full_precision(images, calibration, monkeypatch):
    """Against the finished model's own prefix and the original's activations."""
    seen = _watched(monkeypatch)
    original = _vit(4)
    model = _calibrated(original, calibration)
    recipes = [_recipe("half"), _recipe("block"), _recipe("disjoint-pair")]
    parts.reconstruct_progressively(model, calibration, recipes)
    model.freeze()
    exact = wrap_model(original, equal_table(BitWidth(32, 32))).structure.segments
    given = {name: (streams, target) for _, name, streams, target in seen}
    streams, target = given["blocks.2..blocks.3"]
    with torch.no_grad():
        prefix = run_all(model.structure.segments[:3], images)
        before, behind = run_all(exact[:3], images), run_all(exact[:5], images)
    torch.testing.assert_close(streams.quantized, prefix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(streams.exact, before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target, behind, rtol=1e-4, atol=1e-4)
    # The parts of a block begin with the same activations as the block.
    assert torch.equal(given["blocks.2.attn"][0].quantized, given["blocks.2"][0].quantized)


def test_open_weights_are_rounded_to_the_same_codes(vit, images, calibration):
    """Left in floating point or not, a reconstructed model is the same once its weights are frozen."""
    models = []
    for keep_open in (True, False):
        model = _calibrated(vit, calibration)
        parts.reconstruct(model, calibration, _recipe("block", 5, keep_open=keep_open))
        assert any(op.frozen for op in model.weighted_operations()) is not keep_open
        with torch.no_grad():
            models.append((model(images), model))
    assert torch.equal(models[0][0], models[1][0])
    models[0][1].freeze()
    codes = [[op.codes for op in model.weighted_operations()] for _, model in models]
    assert all(torch.equal(a, b) for a, b in zip(*codes, strict=True))


def test_layers_aim_at_those_of_the_teacher(vit, calibration):
    """Weights that are off already are trained back, not kept where they are."""
    exact = _calibrated(vit, calibration, bits=8)
    model = _calibrated(vit, calibration, bits=8)
    layer = model.module.blocks[0].mlp.fc1
    true = exact.module.blocks[0].mlp.fc1.weight
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(layer.weight.shape, generator=generator)
    with torch.no_grad():
        layer.weight.add_(noise)
    before = float((layer.weight - true).norm())
    recipe = _recipe("layer", 100, input_mix=0.0, batch_size=8)
    parts.reconstruct(model, calibration, recipe, None, exact)
    assert float((layer.weight - true).norm()) < 0.6 * before


def test_what_cannot_be_done_from_fine_to_coarse_is_refused(vit, calibration):
    def refused(words, *recipes):
        with pytest.raises(MethodError, match=words):
            parts.reconstruct_progressively(_calibrated(vit, calibration), calibration, recipes)

    refused("in this order, each once; got none")
    refused("got block, half", _recipe("block"), _recipe("half"))
    refused("got half, half", _recipe("half"), _recipe("half"))
    refused("got half, pair", _recipe("half"), _recipe("pair"))
    block = _recipe("block")
    refused("cannot have holdout", _recipe("half", holdout=0.5), block)
    fisher = _recipe("half", losses=(parts.FisherError(),))
    refused("cannot have FisherError", fisher, block)
    rounding = _recipe("half", trainables=(parts.Roundings(),))
    refused("stay open for another reconstruction", rounding, block)
    refused("batches of 9 images", _recipe("half"), _recipe("block", batch_size=9))
