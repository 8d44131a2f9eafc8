"""Small models of every form that transforms have to know, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.methods.quantization.model.test_identity import PADDED, SWIN, VIT, WHOLE, BareNorm
from vit_ptq_bench.bench.contract.models import build_classifier, sharpened

TOLERANCE = 1e-4
"""Of the largest output."""

VITS: dict[str, dict[str, Any]] = {
    "vit": {},
    "three blocks": {"depth": 3},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "layer scale": {"init_values": 0.5},
    "average pooling": {"class_token": False, "global_pool": "avg"},
    "average behind the norm": {"global_pool": "avg", "fc_norm": False},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "any size": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "bare norms": {"norm_layer": BareNorm},
    "no norm before the head": {"final_norm": False},
    "width 40": {"embed_dim": 40},
}


def _vit(settings: dict[str, Any]) -> nn.Module:
    return VisionTransformer(img_size=16, **VIT | settings)


def _unnormed_swin() -> nn.Module:
    model = SwinTransformer(**SWIN, **WHOLE["windows of 4"][0])
    model.patch_embed.norm = nn.Identity()
    return model


def _three_stages() -> nn.Module:
    """The second merging reads a stream that the first one writes, and whose channels can be mixed."""
    deeper = SWIN | {"depths": (1, 2, 1), "num_heads": (2, 4, 8)}
    return SwinTransformer(**deeper, img_size=16, window_size=4)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda own=own: _vit(own)) for name, own in VITS.items()},
    **{
        f"swin, {name}": (lambda own=own: SwinTransformer(**SWIN, **own))
        for name, (own, _) in (PADDED | WHOLE).items()
    },
    "swin, embedding without a norm": _unnormed_swin,
    "swin, three stages": _three_stages,
    "distilled": lambda: build_classifier("deit-distilled"),
}

SIZES = {f"swin, {name}": size for name, (_, size) in (PADDED | WHOLE).items()} | {
    "any size": (23, 18)
}


@cache
def classifier(name: str) -> nn.Module:
    """A model of `BUILDERS` with random weights that say something; not to be changed."""
    torch.manual_seed(0)
    model = sharpened(BUILDERS[name](), 1)
    generator = torch.Generator().manual_seed(5)
    for key, parameter in model.named_parameters():
        if key.endswith(("_token", "pos_embed", "gamma")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def images_for(name: str, count: int = 4) -> Tensor:
    """Random images [n, 3, height, width] of a size that the model takes."""
    size = SIZES.get(name, (16, 16))
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal to `TOLERANCE` of the largest value."""
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCE, error
