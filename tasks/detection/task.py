"""The part of a detection task that does not depend on where its data come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vit_ptq_bench.tasks import detection, storage
from vit_ptq_bench.tasks.api.selection import drawn, subset
from vit_ptq_bench.tasks.api.task import (
    Evaluation,
    EvaluationProgress,
    LoadedModel,
    Task,
    TaskOptions,
)
from vit_ptq_bench.tasks.detection.data import CocoFiles
from vit_ptq_bench.tasks.detection.figures import METRICS, TITLES
from vit_ptq_bench.tasks.detection.zoo import BUNDLED, config_path
from vit_ptq_bench.tasks.errors import TaskError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class DetectionTask(Task):
    """Detection and instance segmentation judged by COCO's average precision.

    Attributes:
        evaluation_batch: images per forward pass of the evaluation, at most; 1 where sizes differ, for
            padding to a common size changes what a Swin backbone sees.
    """

    metrics: ClassVar[tuple[str, ...]] = METRICS
    metric_titles: ClassVar[Mapping[str, str]] = TITLES
    scopes: ClassVar[tuple[str, ...]] = ("backbone", "full")
    preload: ClassVar[tuple[str, ...]] = ("vit_ptq_bench.tasks.detection.preload",)
    dense = True
    evaluation_batch: ClassVar[int] = 1

    def __init__(self, options: TaskOptions | None = None) -> None:
        super().__init__(options)
        if self.options.holdout:
            raise TaskError(f"task {self.name} holds no training images out; leave out 'holdout'")

    @abstractmethod
    def files(self) -> CocoFiles:
        """Return the images to judge on."""

    @abstractmethod
    def calibration_dataset(self, pipeline: list[Any]) -> Any:
        """Return mmdet's data set of the images that calibration draws from."""

    @abstractmethod
    def scale(self, config: Any) -> tuple[int, int]:
        """Return how large images become at most: (long side, short side)."""

    def build(self, model: str, weights: Path) -> nn.Module:
        """Return a detector with its weights.

        Raises:
            TaskError: no such model, or weights that do not fit it or the data set's classes.
        """
        files = self.files()
        config = detection.read_config(config_path(model))
        if model in BUNDLED:
            detection.set_classes(config.model, len(files.classes), files.has_masks)
        module = detection.build_detector(config)
        storage.load_strictly(module, storage.read_state_dict(weights), str(weights))
        classes = detection.count_classes(module)
        if classes != len(files.classes):
            raise TaskError(
                f"{model} finds {classes} classes, {files.annotations} has {len(files.classes)}"
            )
        return module

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` training images; all padded to the size of the largest."""
        dataset = self.calibration_dataset(self._pipeline(loaded))
        chosen = drawn(len(dataset), n, seed, "the training set")
        return detection.calibration_batches(
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
        dataset = detection.build_dataset(files, self._pipeline(loaded))
        detection.check_images(files, dataset)
        chosen: Sequence[int] = [int(i) for i in subset(len(dataset), self.options.limit)]
        size = min(self.evaluation_batch, self.options.batch_size)
        return detection.detect(
            module, loaded.module, dataset, files, chosen, device, size, progress
        )

    def _pipeline(self, loaded: LoadedModel) -> list[Any]:
        config = detection.read_config(config_path(loaded.name))
        return detection.test_pipeline(self.scale(config), self.cache)
