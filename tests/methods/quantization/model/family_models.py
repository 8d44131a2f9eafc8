"""Small models of timm's families and of their variants, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_ptq_bench.bench.contract.models import sharpened

SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}

LARGE_PATCHES: dict[str, Any] = {"img_size": 64, "patch_size": 32}

VIT: dict[str, dict[str, Any]] = {
    "layer scale (DeiT-III)": {"init_values": 0.5, "no_embed_class": True},
    "registers (DINOv2)": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "average pooling, fc_norm": {"global_pool": "avg", "fc_norm": True},
    "average pooling, final norm": {"global_pool": "avg", "fc_norm": False},
    "qk-norm": {"qk_norm": True},
    "patches of 8": {"patch_size": 8},
    "patches of 32": LARGE_PATCHES,
    "24 x 16 pixels": {"img_size": (24, 16)},
    "SwiGLU": {"mlp_layer": SwiGLU},
    "SwiGLU with a norm": {"mlp_layer": SwiGLU, "scale_mlp_norm": True},
    "packed SwiGLU": {"mlp_layer": SwiGLUPacked},
    "gate last": {"mlp_layer": GluMlp},
    "norms within": {"scale_attn_norm": True, "scale_mlp_norm": True},
}

BEIT: dict[str, dict[str, Any]] = {
    "average pooling": {"use_rel_pos_bias": True, "init_values": 0.5, "qkv_bias": True},
    "shared bias": {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "qkv_bias": True},
    "both biases": {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": True},
    "no bias, class token": {"use_abs_pos_emb": True, "global_pool": "token"},
    "SwiGLU": {"use_rel_pos_bias": True, "swiglu_mlp": True, "scale_mlp": True},
}

ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}

EVA: dict[str, dict[str, Any]] = {
    "EVA": {"global_pool": "avg"},
    "EVA-02, three layers": ROTARY
    | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "global_pool": "avg"},
    "packed SwiGLU": ROTARY | {"swiglu_mlp": True, "scale_attn_inner": True},
    "mixed rotations": ROTARY | {"rope_type": "mixed", "init_values": 0.5, "attn_type": "rope"},
    "DINOv3": {
        **{"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3"},
        **{"rope_rotate_half": True, "num_reg_tokens": 4, "init_values": 0.5},
        **{"use_fc_norm": False, "swiglu_mlp": True, "swiglu_align_to": 8, "global_pool": "avg"},
        "dynamic_img_size": True,
    },
    "qk-norm, norm before": ROTARY
    | {"qk_norm": True, "attn_type": "rope", "qkv_fused": False, "use_pre_transformer_norm": True},
}

SWIN: dict[str, Any] = {
    **{"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
    "depth": None,
}

SWIN_V2: dict[str, dict[str, Any]] = {
    "windows of 4": {"window_size": 4},
    "windows of 3, padded": {"window_size": 3},
    "other pretrained windows": {"window_size": 4, "pretrained_window_sizes": (8, 2)},
    "no biases": {"window_size": 4, "qkv_bias": False},
    "any size": {"window_size": 3, "strict_img_size": False},
}

CLASSES: dict[str, tuple[type[nn.Module], dict[str, dict[str, Any]]]] = {
    "vit": (VisionTransformer, VIT),
    "beit": (Beit, BEIT),
    "eva": (Eva, EVA),
    "swinv2": (SwinTransformerV2, {name: SWIN | own for name, own in SWIN_V2.items()}),
}
"""Family -> its class, and variants by the arguments that make them."""

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    f"{family}, {name}": partial(cls, **{k: v for k, v in (SMALL | own).items() if v is not None})
    for family, (cls, variants) in CLASSES.items()
    for name, own in variants.items()
}
"""Name of a variant -> what builds it."""

SIZES = {
    "vit, patches of 32": (64, 64),
    "vit, 24 x 16 pixels": (24, 16),
    "swinv2, any size": (22, 16),
}

OF_EACH = (
    *("vit, registers (DINOv2)", "vit, SwiGLU", "beit, average pooling", "eva, EVA"),
    *("eva, EVA-02, three layers", "eva, mixed rotations", "swinv2, windows of 3, padded"),
)
"""Variants for what takes long: those of which each family is known."""


@cache
def small_model(name: str) -> nn.Module:
    """A model of `BUILDERS` whose weights say something; not to be changed."""
    torch.manual_seed(0)
    model = sharpened(BUILDERS[name](), 1)
    numbers = torch.Generator().manual_seed(5)
    layers = nn.Linear | nn.Conv2d | nn.LayerNorm
    for module in model.modules():
        if isinstance(module, layers):
            continue
        for key, parameter in module.named_parameters(
            recurse=False
        ):  # tokens, positions, biases, factors
            noise = torch.randn(parameter.shape, generator=numbers)
            parameter.data.copy_(0.5 * noise + 0.5 * ("gamma" in key))
    return model


def images_of(name: str, count: int = 4) -> Tensor:
    """Random images [count, 3, height, width] of the size that a model takes."""
    size = SIZES.get(name, (16, 16))
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7))
