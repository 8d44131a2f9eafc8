"""Wrapping: same function with quantizers off, all layers covered, other architectures refused."""

import pytest
import timm
import torch
from torch import nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation

TABLE = equal_table(BitWidth(4, 4))


@torch.no_grad()
def test_wrapped_model_is_the_original_while_quantizers_are_off(tiny, images):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    wrapped = wrap_model(tiny, TABLE)
    torch.testing.assert_close(wrapped(images), tiny(images), rtol=0, atol=1e-5)
    # Nothing may change when hooks force the explicit attention products either.
    with_hook = wrapped.operations[2].register_forward_hook(lambda *_: None)
    torch.testing.assert_close(wrapped(images), tiny(images), rtol=0, atol=1e-5)
    with_hook.remove()
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch32_224",
        "vit_base_patch32_clip_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "swin_tiny_patch4_window7_224",
    ],
)
@torch.no_grad()
def test_timm_models_by_name(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(wrap_model(model, TABLE)(images), model(images), rtol=0, atol=1e-5)


def test_every_layer_has_a_role_and_every_site_a_unique_name(tiny):
    layers = [n for n, m in tiny.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    wrapped = wrap_model(tiny, TABLE)
    assert sorted(
        op.name for op in wrapped.operations if isinstance(op, WeightedOperation)
    ) == sorted(layers)
    names = [site.name for site in wrapped.sites()]
    assert len(set(names)) == len(names)
    assert {op.role for op in wrapped.operations} >= {
        "patch_embed", "qkv", "scores", "context", "proj", "fc1", "fc2", "head",
    }  # fmt: skip


def test_operations_are_listed_in_execution_order(tiny, images):
    wrapped, order = wrap_model(tiny, TABLE), []
    for operation in wrapped.operations:
        operation.register_forward_hook(lambda module, *_: order.append(module.name))
    wrapped(images)
    assert order == [operation.name for operation in wrapped.operations]


def test_norm_links_cover_the_layernorms_that_fold(tiny):
    wrapped = wrap_model(tiny, TABLE)
    readers = {link.reader.role for link in wrapped.structure.norm_links}
    assert readers == (
        {"qkv", "fc1", "reduction"} if "Swin" in type(tiny).__name__ else {"qkv", "fc1"}
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("resnet18", "ResNet"),
        ("vit_base_patch16_siglip_224", "no role is known for attn_pool"),
        ("vit_small_r26_s32_224", "patch_embed is a HybridEmbed"),
        ("swinv2_tiny_window8_256", "SwinTransformerV2"),
        ("vit_srelpos_small_patch16_224", "VisionTransformerRelPos"),
        ("vit_base_patch16_rpn_224", "blocks.0 is a ResPostBlock"),
    ],
)
def test_other_architectures_are_refused_by_name(name, why):
    model = timm.create_model(name, num_classes=3)
    with pytest.raises(MethodError, match=rf"{why}.*Supported: timm ViT and DeiT"):
        wrap_model(model, TABLE)
