"""Small untrained models of each family, and images for them: a method is tried on all in seconds."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.data import Calibration

CLASSIFIERS = ("vit", "deit-distilled", "swin")

DETECTORS = ("mask_rcnn_swin_mini", "cascade_mask_rcnn_swin_mini")

DETECTOR_SIZE = (64, 64)
"""Height and width of a tiny detector's images."""


def build_classifier(family: str, depth: int = 2) -> nn.Module:
    """Return a model of a family for images of 16 x 16, 10 classes.

    Args:
        family: of `CLASSIFIERS`.
        depth: blocks; a Swin has one more, in two stages.
    """
    torch.manual_seed(0)
    common: dict[str, Any] = {"img_size": 16, "num_classes": 10}
    vit: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": depth, "num_heads": 2}
    if family == "vit":
        model: nn.Module = VisionTransformer(**common, **vit)
    elif family == "deit-distilled":
        model = VisionTransformerDistilled(**common, **vit)
    else:
        size = {"patch_size": 2, "embed_dim": 16, "num_heads": (2, 4), "window_size": 4}
        model = SwinTransformer(**common, **size, depths=(depth, 1))
    return sharpened(model, seed=1)


def sharpened(model: nn.Module, seed: int) -> nn.Module:
    """Random weights large enough, and LayerNorms uneven enough, to make quantization matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.3, 3.0, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


def build_detector(name: str = DETECTORS[0], stages: int = 2) -> nn.Module:
    """Return a bundled detector's architecture, thinner still, with random weights that say something.

    Args:
        name: a bundled detector.
        stages: of its backbone. With two, no patch merging reads a stream whose channels can be mixed.
    """
    from vit_ptq_bench.tasks.detection import models, zoo

    config = models.read_config(zoo.config_path(name))
    _thin(config.model, stages)
    torch.manual_seed(0)
    return shaken(models.build_detector(config))


def shaken(model: nn.Module) -> nn.Module:
    """Return a model with random weights so large, and norms so uneven, that quantization matters."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.3, 2.0)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def _thin(model: Any, stages: int) -> None:
    """Few stages and few channels everywhere, in the config of a detector."""
    widths, numbers = [16 * 2**stage for stage in range(stages)], range(stages)
    model.backbone.update(
        embed_dims=widths[0],
        depths=(2,) * stages,
        num_heads=tuple(2**stage for stage in numbers),
        strides=(4, *(2,) * (stages - 1)),
        out_indices=tuple(numbers),
    )
    model.neck.update(in_channels=widths, out_channels=16, num_outs=5)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(in_channels=16, fc_out_channels=32)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.mask_roi_extractor.out_channels = 16
    model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    model.test_cfg.rpn.update(nms_pre=30, max_per_img=20)
    model.test_cfg.rcnn.score_thr = 0.0


def make_images(count: int = 8) -> Tensor:
    """Return random images for the classifiers, [count, 3, 16, 16]."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def make_detector_images(count: int = 8) -> Tensor:
    """Return random images for a detector, [count, 3, 64, 64]."""
    return torch.randn(count, 3, *DETECTOR_SIZE, generator=torch.Generator().manual_seed(1))


def in_batches(images: Tensor, seed: int) -> Calibration:
    """Return images as a calibration set of two batches of unequal size, where there are enough."""
    cut = max(1, len(images) * 5 // 8)
    return Calibration([images[:cut], images[cut:]], seed=seed)
