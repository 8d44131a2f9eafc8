"""The part of a detection task that does not depend on where its data come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vit_ptq_bench.tasks.api.task import (
    Evaluation,
    EvaluationProgress,
    LoadedModel,
    Task,
    TaskOptions,
    subset,
)
from vit_ptq_bench.tasks.checkpoints import load_strictly, read_state_dict
from vit_ptq_bench.tasks.detection.data import CocoFiles, build_dataset, test_pipeline
from vit_ptq_bench.tasks.detection.evaluation import (
    calibration_batches,
    check_images,
    detect,
    drawn,
)
from vit_ptq_bench.tasks.detection.metrics import FIGURES
from vit_ptq_bench.tasks.detection.zoo import (
    BUNDLED,
    build_detector,
    config_path,
    read_config,
    set_classes,
)
from vit_ptq_bench.tasks.errors import TaskError

METRICS = ("box_ap", "mask_ap", *(f"{kind}_{f}" for kind in ("box", "mask") for f in FIGURES[1:]))


class DetectionTask(Task):
    """Detection and instance segmentation judged by COCO's average precision.

    Attributes:
        evaluation_batch: images per forward pass of the evaluation, at most; 1 where sizes differ, for
            padding to a common size changes what a Swin backbone sees.
    """

    metrics: ClassVar[tuple[str, ...]] = METRICS
    scopes: ClassVar[tuple[str, ...]] = ("backbone", "full")
    dense = True
    evaluation_batch: ClassVar[int] = 1

    def __init__(self, options: TaskOptions | None = None) -> None:
        super().__init__(options)
        if self.options.holdout:
            raise TaskError(f"task {self.name} holds no training images out; leave out 'holdout'")

    def files(self) -> CocoFiles:
        """Return the images to judge on."""
        raise AssertionError("defined by each task")

    def calibration_dataset(self, pipeline: list[Any]) -> Any:
        """Return mmdet's data set of the images that calibration draws from."""
        raise AssertionError("defined by each task")

    def scale(self, config: Any) -> tuple[int, int]:
        """Return how large images become at most: (long side, short side)."""
        raise AssertionError("defined by each task")

    def build(self, model: str, weights: Path) -> tuple[nn.Module, Any]:
        """Return a detector with its weights, and its config.

        Raises:
            TaskError: no such model, or weights that do not fit it or the data set's classes.
        """
        files = self.files()
        config = read_config(config_path(model))
        if model in BUNDLED:
            set_classes(config.model, len(files.classes), files.has_masks)
        module = build_detector(config)
        load_strictly(module, read_state_dict(weights), str(weights))
        classes = _classes(module)
        if classes != len(files.classes):
            raise TaskError(
                f"{model} finds {classes} classes, {files.annotations} has {len(files.classes)}"
            )
        return module, config

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` training images; all padded to the size of the largest."""
        dataset = self.calibration_dataset(test_pipeline(self._scale_of(loaded), self.cache))
        chosen = drawn(len(dataset), n, seed, "the training set")
        return calibration_batches(
            loaded.module, dataset, [int(i) for i in chosen], self.options.batch_size
        )

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Find the objects of the evaluation images."""
        files = self.files()
        dataset = build_dataset(files, test_pipeline(self._scale_of(loaded), self.cache))
        check_images(files, dataset)
        chosen: Sequence[int] = [int(i) for i in subset(len(dataset), self.options.limit)]
        size = min(self.evaluation_batch, self.options.batch_size)
        return detect(module, loaded.module, dataset, files, chosen, device, size, progress)

    def _scale_of(self, loaded: LoadedModel) -> tuple[int, int]:
        return self.scale(read_config(config_path(loaded.name)))


def _classes(module: Any) -> int:
    head: Any = module.roi_head.bbox_head
    first: Any = head[0] if isinstance(head, nn.ModuleList) else head
    return int(first.num_classes)
