"""The part of a detection task that does not depend on where its data come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vit_ptq_bench.tasks import detection, storage
from vit_ptq_bench.tasks.api.network import Network
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.selection import drawn, subset
from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress, ImageForm, LoadedModel
from vit_ptq_bench.tasks.classification.image_folder import FolderCalibration
from vit_ptq_bench.tasks.detection.data import CocoFiles, Picture
from vit_ptq_bench.tasks.detection.figures import METRICS, TITLES
from vit_ptq_bench.tasks.detection.zoo import BUNDLED, COCO_MODELS, config_path
from vit_ptq_bench.tasks.errors import TaskError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


BUILDER = "mmdet"

MOST_CLASSES = 100_000


class DetectionTask(FolderCalibration):
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
        self._scales: dict[str, tuple[int, int]] = {}
        if self.options.holdout:
            raise TaskError(f"task {self.name} holds no training images out; leave out 'holdout'")
        self._drawn: dict[tuple[int, int], list[Picture]] = {}

    @abstractmethod
    def files(self) -> CocoFiles:
        """Return the images to judge on."""

    @abstractmethod
    def calibration_images(self) -> list[Path]:
        """Return the images that calibration draws from.

        Raises:
            TaskError: there are none.
        """

    @abstractmethod
    def scale(self, config: Any) -> tuple[int, int]:
        """Return how large images become at most: (long side, short side)."""

    def build(self, model: str, checkpoint: Path) -> tuple[nn.Module, storage.Weights]:
        """Return a detector with its weights, and what was loaded.

        Raises:
            TaskError: no such model, or weights that do not fit it or the data set's classes.
        """
        files = self.files()
        module = self._architecture(model, len(files.classes), files.has_masks)
        weights = storage.load_weights(module, checkpoint)
        self._require_classes(model, module)
        return module, weights

    def network(self, loaded: LoadedModel) -> Network | None:
        """Return the detector's name and classes; None: it was built from a config file, a program."""
        if loaded.name not in (*BUNDLED, *COCO_MODELS):
            return None
        classes = detection.count_classes(loaded.module)
        masks = bool(getattr(loaded.module, "with_mask", False))
        return Network(BUILDER, loaded.name, {"classes": classes, "masks": masks})

    def untrained(self, model: str, network: Network, at_most: int | None = None) -> LoadedModel:
        """Build the detector that a file names; config files are never taken from one."""
        name, told = network.architecture, dict(network.arguments)
        if network.builder != BUILDER or name not in (*BUNDLED, *COCO_MODELS) or model != name:
            raise TaskError(
                f"the network {name!r} of {network.builder!r} is none of this task's, which are "
                f"{', '.join((*BUNDLED, *COCO_MODELS))}"
            )
        classes, masks = told.get("classes"), told.get("masks")
        if type(classes) is not int or not 0 < classes <= MOST_CLASSES or type(masks) is not bool:
            raise TaskError(
                f"the network {name!r} has no number of classes, or does not say if it has masks"
            )
        module = self._architecture(name, classes, masks)
        self._require_classes(name, module)
        return LoadedModel(model, module)

    def _architecture(self, model: str, classes: int, masks: bool) -> nn.Module:
        """The untrained detector; of the bundled ones the heads fit the classes."""
        config = detection.read_config(config_path(model))
        self._scales[model] = self.scale(config)
        if model in BUNDLED:
            detection.set_classes(config.model, classes, masks)
        return detection.build_detector(config)

    def _require_classes(self, model: str, module: nn.Module) -> None:
        files, classes = self.files(), detection.count_classes(module)
        if classes != len(files.classes):
            raise TaskError(
                f"{model} finds {classes} classes, {files.annotations} has {len(files.classes)}"
            )

    def data_notes(self) -> tuple[str, ...]:
        """Return what was changed when the annotations were read, and how images are turned."""
        return (*self.files().notes, *self._picture_notes)

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` training images; all padded to the size of the largest."""
        return self._batches(loaded, self.drawn_pictures(n, seed))

    def read_images(
        self, loaded: LoadedModel, paths: Sequence[Path], contents: Sequence[str]
    ) -> list[Tensor]:
        """Read images as those of the training set, all padded to the size of the largest."""
        pairs = enumerate(zip(paths, contents, strict=True))
        pictures = [Picture(path, number, content) for number, (path, content) in pairs]
        return self._batches(loaded, pictures)

    def image_form(self, loaded: LoadedModel) -> ImageForm:
        """Return the form of an image of the largest size that lies on its long side, padded."""
        preprocessor: Any = loaded.module.data_preprocessor
        long, short = self._scale_of(loaded)
        divisor = int(preprocessor.pad_size_divisor)
        height, width = (side + -side % divisor for side in (short, long))
        mean, std = (
            tuple(float(value) / 255 for value in values.flatten())
            for values in (preprocessor.mean, preprocessor.std)
        )
        return ImageForm((height, width), mean, std)

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Find the objects of the evaluation images."""
        dataset = detection.PictureSet(self.judged_pictures(), self._pipeline(loaded))
        size = min(self.evaluation_batch, self.options.batch_size)
        return detection.detect(
            module, loaded.module, dataset, self.files(), device, size, progress
        )

    def judged_pictures(self) -> list[Picture]:
        """Return the images to judge on, held against their annotations.

        They are hashed once: what identifies the data and what is read later are the same bytes.

        Raises:
            TaskError: images are missing or do not fit their annotations.
        """
        _ = self._picture_notes
        return self._judged

    def drawn_pictures(self, n: int, seed: int) -> list[Picture]:
        """Return the training images that calibration draws; they are hashed once.

        Raises:
            TaskError: there are fewer than ``n``.
        """
        if (n, seed) not in self._drawn:
            paths = self.calibration_images()
            chosen = drawn(len(paths), n, seed, "the training set")
            self._drawn[n, seed] = detection.plain_pictures([paths[i] for i in chosen])
        return self._drawn[n, seed]

    @cached_property
    def _chosen(self) -> list[int]:
        return [int(i) for i in subset(len(self.files().data["images"]), self.options.limit)]

    @cached_property
    def _picture_notes(self) -> tuple[str, ...]:
        return detection.check_pictures(self.files(), self._chosen)

    @cached_property
    def _judged(self) -> list[Picture]:
        return detection.judged_pictures(self.files(), self._chosen)

    def _batches(self, loaded: LoadedModel, pictures: Sequence[Picture]) -> list[Tensor]:
        dataset = detection.PictureSet(pictures, self._pipeline(loaded))
        return detection.calibration_batches(loaded.module, dataset, self.options.batch_size)

    def _pipeline(self, loaded: LoadedModel) -> list[Any]:
        return detection.test_pipeline(self._scale_of(loaded), self.cache)

    def _scale_of(self, loaded: LoadedModel) -> tuple[int, int]:
        """Of the config that the model was built from, whatever its file says by now."""
        if loaded.name not in self._scales:
            config = detection.read_config(config_path(loaded.name))
            self._scales[loaded.name] = self.scale(config)
        return self._scales[loaded.name]
