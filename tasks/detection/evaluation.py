"""Passes over the images of a detection task: batches for calibration, and the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress
from vit_ptq_bench.tasks.api.transfer import moved
from vit_ptq_bench.tasks.detection.data import CocoFiles, require_size
from vit_ptq_bench.tasks.detection.datasets import PictureSet
from vit_ptq_bench.tasks.detection.metrics import Collector
from vit_ptq_bench.tasks.detection.openmmlab import quiet_about_itself
from vit_ptq_bench.tasks.errors import TaskError

HEADS = ("rpn_head", "bbox_head", "mask_head")
"""Parts of a detector whose outputs are logits and box offsets."""


def preprocessed(model: Any, samples: Sequence[dict[str, Any]]) -> tuple[Tensor, list[Any]]:
    """Return normalised and padded images [b, 3, H, W] and mmdet's data samples."""
    batch = {
        "inputs": [sample["inputs"] for sample in samples],
        "data_samples": [sample["data_samples"] for sample in samples],
    }
    data = model.data_preprocessor(batch, False)
    return data["inputs"], data["data_samples"]


def calibration_batches(model: nn.Module, dataset: PictureSet, batch_size: int) -> list[Tensor]:
    """Return images as the detector sees them, all padded to one size ([b, 3, H, W], float32).

    Their aspect ratio is kept; what is missing to the largest height and width is zero, as in mmdet.
    """
    samples = (dataset.prepare_data(i) for i in range(len(dataset)))
    parts = [preprocessed(model, [sample])[0].cpu() for sample in samples]
    height = max(part.shape[2] for part in parts)
    width = max(part.shape[3] for part in parts)
    padded = [F.pad(p, (0, width - p.shape[3], 0, height - p.shape[2])) for p in parts]
    return list(torch.split(torch.cat(padded), batch_size))


@torch.no_grad()
def detect(
    module: nn.Module,
    original: nn.Module,
    dataset: PictureSet,
    files: CocoFiles,
    device: torch.device,
    batch_size: int,
    progress: EvaluationProgress | None,
) -> Evaluation:
    """Judge a detector, quantized or not.

    Args:
        module: called like mmdet's detectors.
        original: the detector whose preprocessor is used.
        dataset: the evaluation images.
        files: their annotations.
        device: where to compute.
        batch_size: images per forward pass.
        progress: told after each batch.

    Raises:
        TaskError: an image cannot be read or is not of its annotation's size; or what the detector gives is
            not finite.
    """
    masks = bool(getattr(original, "with_mask", False)) and files.has_masks
    collector = Collector(files, [picture.image_id for picture in dataset.pictures], masks)
    done = 0
    with finite_outputs(module), quiet_about_itself():
        for part in _chunks(range(len(dataset)), batch_size):
            samples = [_checked(files, dataset, index) for index in part]
            images, facts = preprocessed(original, samples)
            found = module(moved(images, device), facts, mode="predict")
            _require_finite_results(found)
            collector.add(found)
            done += len(part)
            if progress is not None:
                progress(done, len(dataset))
    return collector.evaluation()


def _checked(files: CocoFiles, dataset: PictureSet, index: int) -> dict[str, Any]:
    """A sample whose decoded size is that of the annotation: masks are compared at that size."""
    sample = dataset.prepare_data(index)
    picture = dataset.pictures[index]
    if picture.size is not None:
        height, width = sample["data_samples"].ori_shape
        require_size(files, picture, (int(height), int(width)), picture.size)
    return sample


@contextmanager
def finite_outputs(module: nn.Module) -> Iterator[None]:
    """Refuse logits of a detector's heads that are not finite, while the context lasts.

    mmdet compares scores with a threshold, which NaN never passes: it would count as having found nothing.

    Raises:
        TaskError: with the name of the head.
    """
    heads = [(name, part) for name, part in module.named_modules() if _is_head(name)]
    handles = [part.register_forward_hook(partial(_require_finite, name)) for name, part in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_head(name: str) -> bool:
    """Whether it is the name of a whole head; those of a cascade are numbered."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return bool(parts) and parts[-1] in HEADS


def _require_finite(name: str, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
    for tensor in _tensors(outputs):
        if not bool(torch.isfinite(tensor).all()):
            raise TaskError(
                f"what {name} gives is not finite (NaN or infinite logits): the model is broken, so there is "
                "no figure"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _require_finite_results(samples: Sequence[Any]) -> None:
    for sample in samples:
        found = sample.pred_instances
        if not all(bool(torch.isfinite(part).all()) for part in (found.bboxes, found.scores)):
            raise TaskError(
                "boxes or scores of the detector are not finite (NaN or infinite): the model is broken, so "
                "there is no figure"
            )


def _chunks(indices: range, size: int) -> Iterator[range]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
