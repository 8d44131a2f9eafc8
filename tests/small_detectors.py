"""Small untrained detectors of mmdet of every supported kind, from configs in the form that users write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_ptq_bench.bench.contract.models import shaken
from vit_ptq_bench.tasks.detection.models import build_detector, read_config

CLASSES = 10

ONE_STAGE = ("retinanet", "fcos", "atss", "gfl")

SWIN: dict[str, Any] = {
    "type": "SwinTransformer",
    "embed_dims": 16,
    "depths": (2, 2),
    "num_heads": (1, 2),
    "strides": (4, 2),
    "window_size": 4,
    "out_indices": (0, 1),
    "drop_path_rate": 0.1,
}

PYRAMID: dict[str, Any] = {
    "type": "FPN",
    "in_channels": [16, 32],
    "out_channels": 16,
    "start_level": 0,
    "add_extra_convs": "on_output",
    "num_outs": 3,
    "relu_before_extra_convs": True,
}

STRIDES = [4, 8, 16]

PREPROCESSOR: dict[str, Any] = {
    "type": "DetDataPreprocessor",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "bgr_to_rgb": True,
    "pad_size_divisor": 32,
}

TEST: dict[str, Any] = {
    "nms_pre": 100,
    "min_bbox_size": 0,
    "score_thr": 0.0,
    "nms": {"type": "nms", "iou_threshold": 0.5},
    "max_per_img": 20,
}

ANCHORS: dict[str, Any] = {
    "type": "AnchorGenerator",
    "ratios": [1.0],
    "octave_base_scale": 4,
    "scales_per_octave": 1,
    "strides": STRIDES,
}

FOCAL: dict[str, Any] = {"type": "FocalLoss", "use_sigmoid": True}

CODER: dict[str, Any] = {"type": "DeltaXYWHBBoxCoder"}

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "retinanet": (
        "RetinaNet",
        {
            "type": "RetinaHead",
            "anchor_generator": ANCHORS | {"ratios": [0.5, 1.0, 2.0]},
            "bbox_coder": CODER,
            "loss_cls": FOCAL,
        },
    ),
    "fcos": (
        "FCOS",
        {"type": "FCOSHead", "strides": STRIDES, "norm_cfg": {"type": "GN", "num_groups": 4}},
    ),
    "atss": (
        "ATSS",
        {
            "type": "ATSSHead",
            "anchor_generator": ANCHORS,
            "bbox_coder": CODER,
            "loss_cls": FOCAL,
            "norm_cfg": {"type": "GN", "num_groups": 4},
        },
    ),
    "gfl": (
        "GFL",
        {
            "type": "GFLHead",
            "anchor_generator": ANCHORS,
            "loss_cls": {"type": "QualityFocalLoss"},
            "loss_dfl": {"type": "DistributionFocalLoss"},
            "norm_cfg": {"type": "GN", "num_groups": 4},
            "reg_max": 4,
        },
    ),
}


MAPPER: dict[str, Any] = {
    "type": "ChannelMapper",
    "in_channels": [16, 32],
    "kernel_size": 1,
    "act_cfg": None,
    "norm_cfg": {"type": "GN", "num_groups": 4},
    "num_outs": 3,
}

DETR_WIDTHS = {"detr": 32, "deformable_detr": 32, "dino": 256}
"""DINO's encoding of boxes has a fixed width."""

DETR_HEADS: dict[str, dict[str, Any]] = {
    "detr": {"type": "DETRHead", "loss_cls": {"type": "CrossEntropyLoss", "class_weight": 1.0}},
    "deformable_detr": {"type": "DeformableDETRHead", "loss_cls": FOCAL},
    "dino": {"type": "DINOHead", "loss_cls": FOCAL},
}

DETR_SETTINGS: dict[str, dict[str, Any]] = {
    "detr": {"type": "DETR"},
    "deformable_detr": {
        "type": "DeformableDETR",
        "num_feature_levels": 3,
        "with_box_refine": False,
        "as_two_stage": False,
    },
    "dino": {
        "type": "DINO",
        "num_feature_levels": 3,
        "with_box_refine": True,
        "as_two_stage": True,
        "dn_cfg": {
            "label_noise_scale": 0.5,
            "box_noise_scale": 1.0,
            "group_cfg": {"dynamic": True, "num_groups": None, "num_dn_queries": 10},
        },
    },
}

DETRS = tuple(DETR_SETTINGS)


def _detr_config(kind: str) -> dict[str, Any]:
    plain, width = kind == "detr", DETR_WIDTHS[kind]
    attention = {"embed_dims": width, "num_heads": 4, "batch_first": True}
    cross = attention if plain else attention | {"num_levels": 3}
    ffn = {"embed_dims": width, "feedforward_channels": 48}
    coder = {"layer_cfg": {"self_attn_cfg": cross, "ffn_cfg": ffn}, "num_layers": 1}
    layer = {"self_attn_cfg": attention, "cross_attn_cfg": cross, "ffn_cfg": ffn}
    decoder = {"layer_cfg": layer, "num_layers": 2, "return_intermediate": True}
    one = {"out_indices": (1,)}, {"in_channels": [32], "num_outs": 1}
    backbone, neck = one if plain else ({}, {})
    model = {
        "data_preprocessor": PREPROCESSOR | {"pad_size_divisor": 1},
        "backbone": SWIN | backbone,
        "neck": MAPPER | {"out_channels": width} | neck,
        "num_queries": 20,
        "encoder": coder,
        "decoder": decoder if plain else decoder | {"post_norm_cfg": None},
        "positional_encoding": {"num_feats": width // 2, "normalize": True},
        "bbox_head": DETR_HEADS[kind] | {"num_classes": CLASSES, "embed_dims": width},
        "test_cfg": {"max_per_img": 20},
    }
    return {"model": model | DETR_SETTINGS[kind], "test_pipeline": pipeline(96)}


VIT: dict[str, Any] = {
    "type": "TimmViT",
    "architecture": "vit_tiny_patch16_224",
    "img_size": 64,
    "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}

VIT_NECKS: dict[str, dict[str, Any]] = {
    "retinanet_vit": PYRAMID | {"in_channels": [32]},
    "fcos_vit": {
        "type": "SimpleFeaturePyramid",
        "in_channels": 32,
        "out_channels": 16,
        "num_outs": 5,
    },
}

VITS = tuple(VIT_NECKS)


def _vit_config(kind: str) -> dict[str, Any]:
    content = small_config(kind.removesuffix("_vit"))
    model = content["model"]
    model |= {"backbone": VIT, "neck": VIT_NECKS[kind]}
    if kind == "fcos_vit":
        model["bbox_head"] |= {"strides": [4, 8, 16, 32, 64]}
    else:
        anchors = model["bbox_head"]["anchor_generator"] | {"strides": [16, 32, 64]}
        model["bbox_head"] |= {"anchor_generator": anchors}
    return content


def small_config(kind: str) -> dict[str, Any]:
    """Return the content of a config file for images of 96 x 96: of `ONE_STAGE`, `DETRS` or `VITS`."""
    if kind in DETRS:
        return _detr_config(kind)
    if kind in VITS:
        return _vit_config(kind)
    detector, head = HEADS[kind]
    common = {"num_classes": CLASSES, "in_channels": 16, "feat_channels": 16, "stacked_convs": 2}
    model = {
        "type": detector,
        "data_preprocessor": PREPROCESSOR,
        "backbone": SWIN,
        "neck": PYRAMID,
        "bbox_head": common | head,
        "test_cfg": TEST,
    }
    return {"model": model, "test_pipeline": pipeline(96)}


def pipeline(side: int) -> list[dict[str, Any]]:
    """Return mmdet's steps of a test, for images of at most ``side`` x ``side``."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (side, side), "keep_ratio": True},
        {"type": "PackDetInputs"},
    ]


def write_config(path: Path, content: dict[str, Any]) -> Path:
    """Write a config file and return its path."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in content.items()))
    return path


def small_detector(folder: Path, content: dict[str, Any]) -> nn.Module:
    """Return the detector of a config, with random weights that say something."""
    torch.manual_seed(0)
    model = build_detector(read_config(write_config(folder / "small.py", content)))
    if hasattr(model, "level_embed"):  # mmdet leaves it without values
        nn.init.normal_(model.level_embed)
    return shaken(model)
