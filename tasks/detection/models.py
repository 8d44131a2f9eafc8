"""mmdet's detectors, built from their config files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from vit_ptq_bench.tasks.detection.openmmlab import (
    MODELS,
    DetDataPreprocessor,
    quiet_about_itself,
    register_all_modules,
)
from vit_ptq_bench.tasks.detection.operators import provide_operators
from vit_ptq_bench.tasks.detection.plain_vit import SimpleFeaturePyramid, TimmViT
from vit_ptq_bench.tasks.errors import TaskError

OWN_TYPES = (TimmViT, SimpleFeaturePyramid)
"""What config files may name beside mmdet's types; registered by being imported."""

WITH_OPERATORS = ("RoIAlign", "MultiScaleDeformableAttention")
"""Modules of ``mmcv.ops`` that do without a compiled mmcv."""


def read_config(path: Path) -> Any:
    """Return mmengine's ``Config`` of a file.

    Raises:
        TaskError: it cannot be read, or describes no detector of boxes.
    """
    try:
        with warnings.catch_warnings():
            # mmengine asks a package that is to go which others are installed; nobody here can change that.
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            config = Config.fromfile(str(path), import_custom_modules=False)
    except Exception as error:  # a config is Python: it can fail in any way
        raise TaskError(
            f"{path}: not a readable mmdet config ({type(error).__name__}: {error})"
        ) from error
    model = config.get("model")
    if (
        not isinstance(model, dict)
        or "backbone" not in model
        or not {"roi_head", "bbox_head"} & set(model)
    ):
        raise TaskError(
            f"{path}: describes no detector (model.backbone, and model.roi_head or model.bbox_head); "
            "two-stage, one-stage and DETR-like detectors are supported"
        )
    return config


def build_detector(config: Any) -> nn.Module:
    """Return the untrained detector of a config, in eval mode.

    Pretrained weights that the config names are left out: nothing is downloaded.

    Raises:
        TaskError: mmdet cannot build it, or it needs operators that are not installed, or it prepares images
            in a way of its own.
    """
    register_all_modules(init_default_scope=True)
    model = config.model.copy()
    _without_initial_weights(model)
    try:
        with quiet_about_itself():
            detector: nn.Module = MODELS.build(model)
    except Exception as error:  # a wrong config fails anywhere inside mmdet
        raise TaskError(f"mmdet cannot build this detector: {error}") from error
    _require_preprocessor(detector)
    if provide_operators():
        _require_operators(detector, model)
    return detector.eval()


def _require_preprocessor(detector: Any) -> None:
    """Refuse images that are prepared otherwise than by mmdet's own normalisation and padding."""
    kind = type(detector.data_preprocessor)
    if kind is not DetDataPreprocessor:
        raise TaskError(
            f"model.data_preprocessor is a {kind.__name__}; images are normalised and padded by mmdet's "
            "DetDataPreprocessor alone, so name that one"
        )


def _require_operators(detector: nn.Module, model: Any) -> None:
    """Refuse what needs other compiled operators of mmcv than those that `operators` stands in for."""
    needed = {
        kind.__name__
        for kind in map(type, detector.modules())
        if kind.__module__.startswith("mmcv.ops.") and kind.__name__ not in WITH_OPERATORS
    }
    needed |= {kind for kind in _suppressions(model.get("test_cfg")) if kind != "nms"}
    if needed:
        raise TaskError(
            f"this detector needs {', '.join(sorted(needed))} of mmcv's compiled operators, which mmcv-lite "
            "does not have; install a compiled mmcv, or leave them out of the config"
        )


def _suppressions(settings: Any) -> Iterator[str]:
    """The kinds of non-maximum suppression that the settings of a test name."""
    if isinstance(settings, dict):
        if isinstance(settings.get("nms"), dict):
            yield str(settings["nms"].get("type", "nms"))
        for value in settings.values():
            yield from _suppressions(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _suppressions(value)


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


def count_classes(module: Any) -> int:
    """Return the number of classes that a detector, two-stage or not, tells apart."""
    head: Any = getattr(module, "roi_head", module).bbox_head
    first: Any = head[0] if isinstance(head, nn.ModuleList) else head
    return int(first.num_classes)


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
