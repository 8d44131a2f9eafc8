"""What moves scales and shifts keeps the function: with quantizers off each variant stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_ptq_bench.bench.contract.models import sharpened
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.families.timm_swin import QuantPaddedBlock
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader, fold_into_values
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized
from vit_ptq_bench.methods.quantization.transforms.norms import smooth_norm_outputs

TABLE = equal_table(BitWidth(4, 4))
NORMS = TABLE.change("norm.input", bits=8)

SWIN = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5}
VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}

PADDED: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "windows of 3": ({"img_size": 16, "window_size": 3}, (16, 16)),
    "not square": ({"img_size": (20, 12), "window_size": 4}, (20, 12)),
    "always_partition": ({"img_size": 16, "window_size": 5, "always_partition": True}, (16, 16)),
    "another size": ({"img_size": 16, "window_size": 4, "strict_img_size": False}, (20, 28)),
    "one axis shifted": (
        {"img_size": (16, 6), "window_size": (3, 4), "strict_img_size": False},
        (16, 6),
    ),
}

WHOLE = {
    "windows of 4": ({"img_size": 16, "window_size": 4}, (16, 16)),
    "odd map before merging": ({"img_size": 18, "window_size": 9}, (18, 18)),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True},
    "norms within": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "pre_norm": {"pre_norm": True},
    "layer scale": {"init_values": 0.5},
    "any size": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "embedding norm": {"embed_norm_layer": "layernorm"},
    "no biases": {"qkv_bias": False, "proj_bias": False},
}


class BareNorm(nn.LayerNorm):
    """A LayerNorm without a bias."""

    def __init__(self, channels: int, **more: Any) -> None:
        super().__init__(channels, bias=False, **more)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fold(model: QuantizedModel, images: Tensor) -> None:
    for link in model.structure.norm_links:
        n = len(link.norm.weight)
        fold_into_reader(link, random(1, n).abs() + 0.3, random(2, n))


def fold_values(model: QuantizedModel, images: Tensor) -> None:
    for link in model.structure.value_links:
        n = link.reader.weight.shape[1]
        fold_into_values(link, random(3, n).abs() + 0.3, random(4, n))


def smooth(model: QuantizedModel, images: Tensor) -> None:
    smooth_norm_outputs(model, Calibration([images]), alpha=0.7)


def reparameterize(model: QuantizedModel, images: Tensor) -> None:
    calibrate_reparameterized(model, Calibration([images]))
    model.activate(weights=False, activations=False)


Transform = Callable[[QuantizedModel, Tensor], None]
TRANSFORMS = (fold, fold_values, smooth, reparameterize)


@torch.no_grad()
def assert_identity(
    model: nn.Module, size: tuple[int, int], transform: Transform
) -> QuantizedModel:
    images = random(0, 3, 3, *size)
    expected = model(images)
    for table in (TABLE, NORMS):
        wrapped = wrap_model(model, table)
        assert torch.equal(wrapped(images), expected)
        transform(wrapped, images)
        torch.testing.assert_close(wrapped(images), expected, rtol=1e-4, atol=1e-4)
        x = images
        for segment in wrapped.structure.segments:
            x = segment.run(x)
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    return wrapped


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("variant", PADDED)
def test_swin_with_padded_windows(variant: str, transform: Transform) -> None:
    settings, size = PADDED[variant]
    wrapped = assert_identity(sharpened(SwinTransformer(**SWIN, **settings), 1), size, transform)
    blocks = [module for module in wrapped.modules() if isinstance(module, QuantPaddedBlock)]
    assert blocks
    if transform in (
        fold,
        reparameterize,
    ):  # without the padding's share it would be another function
        images = random(0, 3, 3, *size)
        with torch.no_grad():
            before = wrapped(images)
            for block in blocks:
                block.padding.value.zero_()
            assert not torch.allclose(wrapped(images), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("variant", WHOLE)
def test_swin_with_whole_windows_keeps_timms_blocks(variant: str, transform: Transform) -> None:
    settings, size = WHOLE[variant]
    wrapped = assert_identity(sharpened(SwinTransformer(**SWIN, **settings), 1), size, transform)
    assert not [module for module in wrapped.modules() if isinstance(module, QuantPaddedBlock)]
    assert not [name for name in wrapped.state_tensors() if "padding" in name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_vision_transformer(variant: str) -> None:
    model = sharpened(VisionTransformer(img_size=16, **VIT | VARIANTS[variant]), 1)
    for transform in (fold, reparameterize):
        assert_identity(model, (16, 16), transform)
    if variant == "any size":
        assert_identity(model, (23, 18), fold)


def test_a_norm_without_a_bias_gets_one_to_fold_into() -> None:
    model = VisionTransformer(img_size=16, **VIT, norm_layer=BareNorm).eval()
    wrapped = assert_identity(model, (16, 16), fold)
    assert len(wrapped.structure.norm_links) == 4


def test_norms_within_attention_and_mlp_are_quantized_where_norms_are() -> None:
    settings = {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}
    model = VisionTransformer(img_size=16, **VIT | settings).eval()
    wrapped, order = wrap_model(model, NORMS), []
    for operation in wrapped.operations:
        operation.register_forward_hook(lambda module, *_: order.append(module.name))
    wrapped(random(0, 1, 3, 16, 16))
    assert order == [operation.name for operation in wrapped.operations]
    assert {f"blocks.0.attn.{n}" for n in ("q_norm", "k_norm", "norm")} | {"blocks.0.mlp.norm"} < {
        *order
    }


@torch.no_grad()
def test_the_value_of_padded_tokens_is_saved(tmp_path: Any) -> None:
    settings, size = PADDED["windows of 3"]
    model = sharpened(SwinTransformer(**SWIN, **settings), 1)
    images = random(0, 3, 3, *size)
    wrapped = wrap_model(model, TABLE)
    calibrate_reparameterized(wrapped, Calibration([images]))
    wrapped.freeze()
    save_quantized(wrapped, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", model)
    assert torch.equal(again(images), wrapped(images))
