"""A plain ViT as the backbone of mmdet's detectors, which have none, and the pyramid that is made of its map.

Config files name both by their types, ``TimmViT`` and ``SimpleFeaturePyramid``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_ptq_bench.tasks.detection.openmmlab import MODELS

ALONE: Mapping[str, Any] = {
    "num_classes": 0,
    "global_pool": "",
    "class_token": False,
    "reg_tokens": 0,
    "dynamic_img_size": True,
    "dynamic_img_pad": True,
}
"""Arguments of timm without which the tokens are no map of the image, whatever its size."""


@MODELS.register_module()
class TimmViT(BaseModule):  # type: ignore[misc]
    """timm's ViT without class token, register tokens, pooling and classifier.

    Attention is global in all blocks. Position embeddings are resampled to the image, and an image is padded
    with zeros to whole patches, below and on the right.

    Args:
        architecture: timm's name of a ViT, ``vit_base_patch16_224``; nothing is downloaded.
        img_size: of the images that the position embeddings are for: one side, or height and width.
        arguments: more of timm's, such as ``drop_path_rate`` or ``init_values``.
        init_cfg: mmengine's.

    Raises:
        ValueError: timm has no such ViT, or an argument would leave no map.
    """

    def __init__(
        self,
        architecture: str,
        img_size: int | Sequence[int],
        arguments: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        more = dict(arguments or {})
        fixed = sorted({*ALONE, "pretrained", "img_size"} & set(more))
        if fixed:
            raise ValueError(f"arguments must leave out {', '.join(fixed)}: a detector needs a map")
        if not timm.is_model(architecture):
            raise ValueError(f"timm has no architecture {architecture!r}")
        size = img_size if isinstance(img_size, int) else tuple(img_size)
        try:
            vit = timm.create_model(architecture, pretrained=False, img_size=size, **ALONE, **more)
        except TypeError as error:
            raise ValueError(
                f"timm's {architecture} cannot be built as a plain ViT: {error}"
            ) from error
        if type(vit) is not VisionTransformer:
            raise ValueError(f"timm's {architecture} is a {type(vit).__name__}, not a plain ViT")
        self.vit = vit

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the one map of images [B, 3, H, W]: [B, C, rows, columns] behind the last norm."""
        tokens = self.vit.forward_features(images)
        size = self.vit.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
        # The number of images stays unsaid: an exported file is for any.
        return (tokens.transpose(1, 2).unflatten(2, size),)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):  # type: ignore[misc]
    """Maps of a quarter to twice the stride of a single one, and coarser ones by max pooling.

    After Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet, ECCV 2022).

    Args:
        in_channels: of the map.
        out_channels: of each map of the pyramid.
        num_outs: how many there are, 4 or more.
        init_cfg: mmengine's.

    Raises:
        ValueError: fewer than 4 maps.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_outs: int = 5, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if num_outs < 4:
            raise ValueError(f"num_outs must be 4 or more, got {num_outs}")
        half, quarter = in_channels // 2, in_channels // 4
        finest = (
            *(nn.ConvTranspose2d(in_channels, half, 2, 2), LayerNorm2d(half), nn.GELU()),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
        scales: tuple[tuple[int, tuple[nn.Module, ...]], ...] = (
            (quarter, finest),
            (half, (nn.ConvTranspose2d(in_channels, half, 2, 2),)),
            (in_channels, ()),
            (in_channels, (nn.MaxPool2d(2, 2),)),
        )
        self.scales = nn.ModuleList(
            nn.Sequential(*before, *_projection(width, out_channels)) for width, before in scales
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(1, 2) for _ in range(num_outs - len(scales)))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the pyramid, finest first, of the one map [B, C, H, W] in ``maps``."""
        (x,) = maps
        found = [scale(x) for scale in self.scales]
        for pool in self.pools:
            found.append(pool(found[-1]))
        return tuple(found)


def _projection(width: int, channels: int) -> tuple[nn.Module, ...]:
    """A convolution of one pixel and one of three, each with its norm."""
    return (
        *(nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)),
        *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)),
    )
