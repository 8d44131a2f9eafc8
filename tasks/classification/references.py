"""Full-precision figures that papers print for timm's weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Published full-precision top-1 on the 50,000 validation images; two sources may differ."""

    top1: float
    tolerance: float = 0.3


REFERENCES = {
    "vit_small_patch16_224.augreg_in21k_ft_in1k": Reference(81.39),
    "vit_base_patch16_224.augreg_in21k_ft_in1k": Reference(84.54),
    "deit_tiny_patch16_224.fb_in1k": Reference(72.21),
    "deit_small_patch16_224.fb_in1k": Reference(79.85),
    "deit_base_patch16_224.fb_in1k": Reference(81.80, 0.5),
    "swin_tiny_patch4_window7_224.ms_in1k": Reference(81.39),
    "swin_small_patch4_window7_224.ms_in1k": Reference(83.23),
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k": Reference(85.27),
}
"""Full-precision figures that the PTQ papers (RepQ-ViT, PTQ4ViT, I&S-ViT) print for timm's weights."""
