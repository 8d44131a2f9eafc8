"""Detectors by name or by config file, built with mmdet."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from vit_ptq_bench.tasks.errors import TaskError

CONFIGS = Path(__file__).parent / "configs"


BUNDLED = ("mask_rcnn_swin_mini", "cascade_mask_rcnn_swin_mini")


COCO_MODELS = {
    "mask_rcnn_swin_t": "mmdet:swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "mask_rcnn_swin_s": "mmdet:swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py",
    "cascade_mask_rcnn_swin_t": "cascade_mask_rcnn_swin_t.py",
    "cascade_mask_rcnn_swin_s": "cascade_mask_rcnn_swin_s.py",
}
"""The detectors of the field's tables; the config of mmdet's package or of this one."""


def config_path(name: str) -> Path:
    """Return the config file of a detector.

    Args:
        name: a name of `BUNDLED` or `COCO_MODELS`, or the path of a config file (``.py``).

    Raises:
        TaskError: there is no such name, or no such file.
    """
    if name in BUNDLED:
        return CONFIGS / f"{name}.py"
    if name in COCO_MODELS:
        place, _, inner = COCO_MODELS[name].rpartition(":")
        return _mmdet_configs() / inner if place else CONFIGS / inner
    if not name.endswith(".py"):
        raise TaskError(
            f"unknown detector {name!r}; there are {', '.join((*BUNDLED, *COCO_MODELS))}, "
            "or give the path of an mmdet config file"
        )
    if not Path(name).is_file():
        raise TaskError(f"{name}: no such config file")
    return Path(name)


def _mmdet_configs() -> Path:
    spec = importlib.util.find_spec("mmdet")
    if spec is None or spec.origin is None:
        raise TaskError("mmdet is not installed; install the project with its dependencies")
    return Path(spec.origin).parent / ".mim" / "configs"


def read_config(path: Path) -> Any:
    """Return mmengine's ``Config`` of a file.

    Raises:
        TaskError: it cannot be read, or describes no two-stage detector with a Swin backbone.
    """
    from mmengine.config import Config

    try:
        config = Config.fromfile(str(path), import_custom_modules=False)
    except Exception as error:  # a config is Python: it can fail in any way
        raise TaskError(
            f"{path}: not a readable mmdet config ({type(error).__name__}: {error})"
        ) from error
    model = config.get("model")
    if not isinstance(model, dict) or "backbone" not in model or "roi_head" not in model:
        raise TaskError(
            f"{path}: describes no two-stage detector (model.backbone and model.roi_head); "
            "Mask R-CNN and Cascade Mask R-CNN are supported"
        )
    return config


def build_detector(config: Any) -> nn.Module:
    """Return the untrained detector of a config, in eval mode.

    Pretrained weights that the config names are left out: nothing is downloaded.

    Raises:
        TaskError: mmdet cannot build it.
    """
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    model = config.model.copy()
    _without_initial_weights(model)
    try:
        return MODELS.build(model).eval()
    except Exception as error:  # a wrong config fails anywhere inside mmdet
        raise TaskError(f"mmdet cannot build this detector: {error}") from error


def set_classes(model: Any, classes: int, masks: bool) -> None:
    """Give the heads of a detector's config ``classes`` classes, and no mask head without masks."""
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head["num_classes"] = classes
    if masks:
        model.roi_head.mask_head["num_classes"] = classes
    else:
        model.roi_head.pop("mask_head")
        model.roi_head.pop("mask_roi_extractor")


def _without_initial_weights(model: Any) -> None:
    """Drop ``Pretrained`` initialisations, which would fetch a file."""
    if isinstance(model, dict):
        initial = model.get("init_cfg")
        if isinstance(initial, dict) and initial.get("type") == "Pretrained":
            model["init_cfg"] = None
        for value in model.values():
            _without_initial_weights(value)
    elif isinstance(model, list | tuple):
        for value in model:
            _without_initial_weights(value)
