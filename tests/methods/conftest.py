"""Small untrained models in the supported families, and calibration images for them."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ptq_bench.methods.quantization.calibration.data import Calibration


def _sharpened(model: nn.Module, seed: int) -> nn.Module:
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


def build_tiny(family: str) -> nn.Module:
    """Return a two-block model of a family, 16 x 16 images, 10 classes."""
    torch.manual_seed(0)
    common = {"img_size": 16, "num_classes": 10}
    vit = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    if family == "vit":
        model: nn.Module = VisionTransformer(**common, **vit)
    elif family == "deit-distilled":
        model = VisionTransformerDistilled(**common, **vit)
    else:
        model = SwinTransformer(
            **common, patch_size=2, embed_dim=16, depths=(2, 1), num_heads=(2, 4), window_size=4
        )
    return _sharpened(model, seed=1)


@pytest.fixture(params=["vit", "deit-distilled", "swin"])
def tiny(request: pytest.FixtureRequest) -> nn.Module:
    """Each family in turn."""
    return build_tiny(request.param)


@pytest.fixture
def vit() -> nn.Module:
    """The plain tiny ViT."""
    return build_tiny("vit")


@pytest.fixture
def images() -> torch.Tensor:
    """Eight random images [8, 3, 16, 16]."""
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def calibration(images: torch.Tensor) -> Calibration:
    """The images in two batches."""
    return Calibration([images[:5], images[5:]], seed=3)
