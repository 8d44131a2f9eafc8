"""The bundled models: small members of the families of the field, made for the bundled digits.

Architectures are timm's, twelve blocks deep; the weights are half-precision safetensors beside this
file, made by ``python -m vit_ptq_bench.tasks.training.classifiers``.
"""

from collections.abc import Callable

from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ptq_bench.tasks.errors import TaskError

CLASSES = 10


IMAGE_SIZE = 32


MEAN = STD = 0.5


def _vit_mini() -> nn.Module:
    return VisionTransformer(
        img_size=IMAGE_SIZE, patch_size=4, embed_dim=96, depth=12, num_heads=3, num_classes=CLASSES
    )


def _deit_mini() -> nn.Module:
    return VisionTransformerDistilled(
        img_size=IMAGE_SIZE, patch_size=4, embed_dim=96, depth=12, num_heads=3, num_classes=CLASSES
    )


def _swin_mini() -> nn.Module:
    return SwinTransformer(
        img_size=IMAGE_SIZE,
        patch_size=2,
        embed_dim=32,
        depths=(2, 2, 6, 2),
        num_heads=(2, 4, 8, 16),
        window_size=4,
        num_classes=CLASSES,
        drop_path_rate=0.0,
    )


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "vit_mini": _vit_mini,
    "deit_mini": _deit_mini,
    "swin_mini": _swin_mini,
}


def build_architecture(name: str) -> nn.Module:
    """Return an untrained bundled model in eval mode.

    Raises:
        TaskError: no bundled model has that name.
    """
    if name not in ARCHITECTURES:
        raise TaskError(f"no bundled model {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]().eval()
