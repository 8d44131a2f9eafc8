"""Transforms as a setting of every method."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.methods.quantization.model.test_identity import VIT
from vit_ptq_bench.bench.contract.models import build_classifier
from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth

NAMES = ("rotate-residual", "shift-norms", "rotate-heads")


def test_a_method_takes_them_and_keeps_them():
    plain = METHODS.get("qdrop").create({"batch_size": 6})
    turned = plain.with_transforms(list(NAMES))
    assert plain.transforms == () and turned.transforms == NAMES
    assert turned.parameters == plain.parameters and type(turned) is type(plain)
    assert turned.with_transforms(["centre-keys"]).transforms == ("centre-keys",)
    table = plain.bit_table(BitWidth(4, 4))
    words = "transformed first: rotate-residual, then shift-norms, then rotate-heads"
    assert words in turned.convention(table) and words not in plain.convention(table)
    batched = next(c for c in METHODS.module_dict.values() if c.batch is not None)
    half = batched.create().with_transforms(NAMES).with_half_batch()
    assert half.transforms == NAMES and half.batch_images < batched.create().batch_images


def test_the_reference_takes_none():
    assert METHODS.get("fp32").create().with_transforms([]).transforms == ()
    with pytest.raises(MethodError, match="fp32 is the model as it is") as caught:
        METHODS.get("fp32").create().with_transforms(NAMES)
    assert caught.value.parameter == "transforms"


@pytest.mark.parametrize(
    ("name", "family"),
    [("minmax", "swin"), ("gptq", "vit"), ("fq-vit", "deit-distilled"), ("lrquant", "vit")],
)
@torch.no_grad()
def test_any_method_works_behind_them(name, family, images, calibration):
    cls, tiny = METHODS.get(name), build_classifier(family)
    method = cls.create(dict(cls.quick)).with_transforms(NAMES)
    exact = method.quantize(tiny, method.bit_table(BitWidth(32, 32)), calibration)
    torch.testing.assert_close(exact(images), tiny(images), rtol=0, atol=1e-3)
    found = method.quantize(tiny, method.bit_table(BitWidth(4, 4)), calibration)(images)
    plain = cls.create(dict(cls.quick))
    other = plain.quantize(tiny, plain.bit_table(BitWidth(4, 4)), calibration)(images)
    assert torch.isfinite(found).all() and not torch.equal(found, other)


def test_a_model_that_cannot_take_them_is_declined_in_words(calibration):
    model = VisionTransformer(img_size=16, **VIT | {"qk_norm": True}).eval()
    method = METHODS.get("minmax").create().with_transforms(["smooth-norms", "rotate-heads"])
    table = method.bit_table(BitWidth(4, 4))
    reason = method.supports(model, table)
    assert reason is not None
    assert reason.startswith("rotate-heads: blocks.0.attn normalises queries and keys")
    with pytest.raises(MethodError, match="rotate-heads: "):
        method.quantize(model, table, calibration)
    assert method.with_transforms(["smooth-norms"]).supports(model, table) is None
