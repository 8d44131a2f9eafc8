"""What cannot work is refused through `quantize` in words, before the model or an image is touched."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.methods.quantization.model.test_identity import VIT
from vit_ptq_bench.methods import METHODS, MethodError, quantize
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

FOLDS = "3 calibration images cannot be cut into 4 folds; use more images or fewer folds"


@pytest.fixture
def idle(monkeypatch):
    """Neither a pass through the model nor a transform may happen."""

    def refuse(*_, **__):
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(QuantizedModel, "forward", refuse)
    monkeypatch.setattr(parts, "apply_transforms", refuse, raising=False)


@pytest.mark.parametrize(
    ("name", "settings", "images", "words"),
    [
        ("rose", {"ridge": None}, 3, FOLDS),
        ("rose-uniform", {"ridge": None}, 3, FOLDS),
        ("marr", {}, 3, FOLDS),
        ("qwt", {"base": "ptq4vit"}, 1, "needs at least 2 calibration images.*; got 1"),
        ("qwt", {"form": "folded"}, 1, "needs at least 2 calibration images.*; got 1"),
        ("qdrop", {}, 3, "in batches of 8 images needs at least as many calibration images, got 3"),
        ("mgrq", {}, 8, "got 6 to train on"),
        ("ls-vit", {"start": "closed-form"}, 3, "in batches of 8 images"),
        ("i-and-s-vit", {}, 3, "in batches of 8 images"),
        ("lrquant", {}, 3, "in batches of 4 images"),
        ("pfcr", {}, 3, "in batches of 8 images"),
        ("qft", {"holdout": 0.25}, 8, "got 6 to train on"),
    ],
)
@pytest.mark.parametrize("transforms", [(), ("shift-norms",)])
def test_too_few_images(name, settings, images, words, transforms, vit, idle):
    shown = torch.randn(images, 3, 16, 16)
    with pytest.raises(MethodError, match=words) as caught:
        quantize(vit, name, "W4A4", shown, transforms=list(transforms), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "sizes", "words"),
    [
        (
            "rotate-residual",
            {"embed_dim": 50, "num_heads": 5},
            "width 50 is known here .*48 and 56; .*rotate-residual-random takes any width",
        ),
        (
            "rotate-heads",
            {"embed_dim": 36, "num_heads": 2},
            "width 18 is known here .*16 and 20; .*rotate-heads-random takes any width",
        ),
        (
            "equalise-heads",
            {"embed_dim": 36, "num_heads": 2},
            "width 18 is known here .*; leave equalise-heads out for this model",
        ),
        ("centre-keys", {"qk_norm": True}, "normalises queries and keys"),
    ],
)
def test_transforms_without_their_structure(transform, sizes, words, images, idle):
    model = VisionTransformer(img_size=16, **VIT | sizes).eval()
    with pytest.raises(MethodError, match=f"^{transform}: .*{words}"):
        quantize(model, "minmax", "W4A4", images, transforms=[transform])


@pytest.mark.parametrize(
    ("site", "scheme", "words"),
    [
        ("fc1.input", "log", "fc1.input: the form 'log' has values from 0 up only"),
        ("fc2.input", "adalog", "fc2.input: the form 'adalog' has values from 0 up only"),
        ("value", "shifted-log", "value: the form 'shifted-log' has values from GELU's minimum"),
        ("qkv.weight", "log2", "qkv.weight: the form 'log2' has values from 0 up only"),
    ],
)
def test_logarithmic_grids_of_what_can_be_negative(site, scheme, words, vit, calibration, idle):
    method = METHODS.get("minmax").create()
    table = method.bit_table(BitWidth(4, 4)).change(site, scheme=scheme)
    with pytest.raises(MethodError, match=words):
        method.quantize(vit, table, calibration)


@pytest.mark.parametrize(
    ("name", "settings"), [("rose", {"gelu": "offset-log"}), ("adalog", {}), ("ptq4vit", {})]
)
def test_grids_behind_gelu_where_there_is_none(name, settings, images, idle):
    model = VisionTransformer(img_size=16, **VIT, act_layer=nn.SiLU).eval()
    words = "blocks.0.mlp.fc2.input: .* blocks.0.mlp.act, a SiLU, goes below it; use a form such"
    with pytest.raises(MethodError, match=words):
        quantize(model, name, "W4A4", images, **settings)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "relu"])
def test_activations_that_stay_above_gelus_minimum_take_them(activation, images):
    model = VisionTransformer(img_size=16, **VIT, act_layer=activation).eval()
    quantized = quantize(model, "rose", "W4A4", images, gelu="offset-log")
    assert torch.isfinite(quantized(images)).all()


@pytest.mark.parametrize("gelu", ["uniform", "codebook-float"])
def test_forms_for_any_number_take_any_activation(gelu, images):
    model = VisionTransformer(img_size=16, **VIT, act_layer=nn.SiLU).eval()
    assert torch.isfinite(quantize(model, "rose", "W4A4", images, gelu=gelu)(images)).all()
