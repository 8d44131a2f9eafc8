"""Passes over the images of a detection task: batches for calibration, and the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress
from vit_ptq_bench.tasks.detection.data import CocoFiles
from vit_ptq_bench.tasks.detection.metrics import Collector
from vit_ptq_bench.tasks.errors import TaskError


def read_sample(dataset: Any, index: int) -> dict[str, Any]:
    """Return what mmdet's pipeline makes of one image.

    Raises:
        TaskError: the image is missing or cannot be decoded; it is named.
    """
    path = dataset.get_data_info(index)["img_path"]
    try:
        sample: dict[str, Any] | None = dataset.prepare_data(index)
    except Exception as error:  # OpenCV, mmcv and the file system each raise their own kinds
        raise TaskError(f"{path}: cannot be read as an image ({error})") from error
    if sample is None:
        raise TaskError(f"{path}: cannot be read as an image")
    return sample


def preprocessed(model: Any, samples: Sequence[dict[str, Any]]) -> tuple[Tensor, list[Any]]:
    """Return normalised and padded images [b, 3, H, W] and mmdet's data samples."""
    batch = {
        "inputs": [sample["inputs"] for sample in samples],
        "data_samples": [sample["data_samples"] for sample in samples],
    }
    data = model.data_preprocessor(batch, False)
    return data["inputs"], data["data_samples"]


def calibration_batches(
    model: nn.Module, dataset: Any, indices: Sequence[int], batch_size: int
) -> list[Tensor]:
    """Return images as the detector sees them, all padded to one size ([b, 3, H, W], float32).

    Their aspect ratio is kept; what is missing to the largest height and width is zero, as in mmdet.
    """
    parts = [preprocessed(model, [read_sample(dataset, int(i))])[0].cpu() for i in indices]
    height = max(part.shape[2] for part in parts)
    width = max(part.shape[3] for part in parts)
    padded = [F.pad(p, (0, width - p.shape[3], 0, height - p.shape[2])) for p in parts]
    return list(torch.split(torch.cat(padded), batch_size))


@torch.no_grad()
def detect(
    module: nn.Module,
    original: nn.Module,
    dataset: Any,
    files: CocoFiles,
    indices: Sequence[int],
    device: torch.device,
    batch_size: int,
    progress: EvaluationProgress | None,
) -> Evaluation:
    """Judge a detector, quantized or not.

    Args:
        module: called like mmdet's detectors.
        original: the detector whose preprocessor is used.
        dataset: mmdet data set of the evaluation images.
        files: their annotations.
        indices: which images of the data set.
        device: where to compute.
        batch_size: images per forward pass.
        progress: told after each batch.
    """
    masks = bool(getattr(original, "with_mask", False)) and files.has_masks
    ids = [dataset.get_data_info(int(i))["img_id"] for i in indices]
    collector = Collector(files, ids, masks)
    done = 0
    for part in _chunks(indices, batch_size):
        images, samples = preprocessed(original, [read_sample(dataset, int(i)) for i in part])
        collector.add(module(images.to(device), samples, mode="predict"))
        done += len(part)
        if progress is not None:
            progress(done, len(indices))
    return collector.evaluation()


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def check_images(files: CocoFiles, dataset: Any) -> None:
    """Refuse a data set of which images are missing, before any work.

    Raises:
        TaskError: the first few missing files are named.
    """
    paths = [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise TaskError(
            f"{files.images} lacks {len(missing)} of the {len(paths)} images of {files.annotations}: "
            f"{', '.join(missing[:3])}"
        )
