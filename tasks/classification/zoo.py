"""The bundled models: small members of the families of the field, made for the bundled pictures.

Architectures are timm's; the weights are half-precision safetensors in ``tasks/weights``,
made by ``python -m vit_ptq_bench.tasks.training.classifiers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.tasks import classification
from vit_ptq_bench.tasks.classification.fashion_pictures import CLASSES, SIZE
from vit_ptq_bench.tasks.errors import TaskError

if TYPE_CHECKING:
    from torch import nn

MEAN = STD = 0.5


@dataclass(frozen=True)
class Architecture:
    """A class of ``timm.models`` and the arguments that it is built with."""

    timm_class: str
    settings: Mapping[str, Any]


_PICTURES = {"img_size": SIZE, "num_classes": CLASSES}

_COLUMNAR = _PICTURES | {"patch_size": 4, "embed_dim": 192, "num_heads": 3}

_HIERARCHICAL = _PICTURES | {
    "patch_size": 2,
    "embed_dim": 32,
    "depths": (2, 2, 6),
    "num_heads": (2, 4, 8),
    "window_size": 7,
    "drop_path_rate": 0.0,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "vit_mini": Architecture("VisionTransformer", _COLUMNAR | {"depth": 8}),
    "deit_mini": Architecture("VisionTransformerDistilled", _COLUMNAR | {"depth": 6}),
    "swin_mini": Architecture("SwinTransformer", _HIERARCHICAL),
}


def build_architecture(name: str) -> nn.Module:
    """Return an untrained bundled model in eval mode.

    Raises:
        TaskError: no bundled model has that name.
    """
    if name not in ARCHITECTURES:
        raise TaskError(f"no bundled model {name!r}; there are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    return classification.create_by_class(architecture.timm_class, architecture.settings).eval()
