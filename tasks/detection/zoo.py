"""Detectors by name or by config file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
