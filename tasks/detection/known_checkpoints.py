"""Figures that mmdet publishes of its checkpoints, from the files that lie in its package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.fileio import load
from safetensors import SafetensorError, safe_open

from vit_ptq_bench.tasks.detection.zoo import mmdet_configs

HEX_DIGITS = 8
"""Of a checkpoint's SHA-256, with which OpenMMLab ends the names of its files."""

TASK, DATA, METRIC = "Object Detection", "COCO", "box AP"
"""What a figure has to be of, in the words of the metafiles."""


def published_box_ap(checkpoint: Path, identity: str) -> float | None:
    """Return box AP on COCO val2017 that mmdet publishes of a checkpoint, in percent; None: of none like it.

    Args:
        checkpoint: the file, or what `bench convert checkpoint` made of it, which names the original's hash.
        identity: ``sha256:...`` of the file.
    """
    ids = {identity, _source_of(checkpoint)} - {None}
    endings = tuple(f"-{str(one).removeprefix('sha256:')[:HEX_DIGITS]}.pth" for one in ids)
    for path in sorted(mmdet_configs().glob("*/metafile.yml")):
        text = path.read_text(encoding="utf-8")
        if any(ending in text for ending in endings):
            return _box_ap(load(str(path)), endings)
    return None


def _source_of(checkpoint: Path) -> str | None:
    """The hash of the file that this one was converted from; None: it was not."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return (file.metadata() or {}).get("source_sha256")
    except SafetensorError:  # a state dict of torch
        return None


def _box_ap(metafile: Any, endings: tuple[str, ...]) -> float | None:
    models = metafile["Models"] if isinstance(metafile, dict) else metafile
    for model in models:
        if not str(model.get("Weights")).endswith(endings):
            continue
        for result in model.get("Results", ()):
            if (result["Task"], result["Dataset"]) == (TASK, DATA):
                return float(result["Metrics"][METRIC])
    return None
