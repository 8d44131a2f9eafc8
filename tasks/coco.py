"""The COCO task: mmdet detectors on the user's own images."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks import detection, storage
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.task import LoadedModel
from vit_ptq_bench.tasks.detection.data import CocoFiles, images_in, read_coco
from vit_ptq_bench.tasks.detection.task import DetectionTask
from vit_ptq_bench.tasks.detection.zoo import BUNDLED, COCO_MODELS, config_path
from vit_ptq_bench.tasks.errors import TaskError

LAYOUTS = (("val2017", "train2017", "instances_val2017.json"), ("val", "train", "val.json"))
"""Folders of evaluation and training images, and the file under ``annotations``."""

SCALE = (1333, 800)
"""The size of nearly all published figures: short side 800, long side 1333 at most."""


@register_task
class Coco(DetectionTask):
    """Find the objects of COCO val2017, or of any data set in COCO's form, with an mmdet detector.

    ``data_dir`` holds ``val2017/``, ``train2017/`` and ``annotations/instances_val2017.json`` (or ``val/``,
    ``train/`` and ``annotations/val.json``); ``val_labels`` is another annotation file. Models are Mask R-CNN
    and Cascade Mask R-CNN with Swin-T and Swin-S, the bundled architectures, or the path of an mmdet config
    file, always with the weights of ``checkpoint``. Preprocessing is mmdet's, at the size that the config's
    test pipeline names. Calibration images come from the training folder, drawn by seed.
    """

    name = "coco"
    version = 1

    def model_names(self) -> list[str]:
        """Return the detectors known by name."""
        return [*COCO_MODELS, *BUNDLED]

    def knows_model(self, model: str) -> bool:
        """Whether it is a name, or a config file."""
        return model in self.model_names() or (model.endswith(".py") and Path(model).is_file())

    def weights_id(self, model: str) -> str:
        """Return the checkpoint's hash, with that of a config file of the user's own."""
        weights = storage.file_id(self._checkpoint(model))
        if model in self.model_names():
            return weights
        return f"{weights} {storage.file_id(config_path(model))}"

    def data_id(self) -> str:
        """Return a hash over the annotations and the names and sizes of all images."""
        files = self.files()
        digest = hashlib.sha256(files.annotations.read_bytes())
        for folder in (files.images, self._training):
            for path in images_in(folder) if folder.is_dir() else []:
                digest.update(f"{path.name}\0{path.stat().st_size}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def load_model(self, model: str) -> LoadedModel:
        """Build a detector with the weights of the checkpoint."""
        return LoadedModel(model, self.build(model, self._checkpoint(model)))

    def files(self) -> CocoFiles:
        """Return the evaluation images."""
        return self._files

    def calibration_dataset(self, pipeline: list[Any]) -> Any:
        """Return the training images, without annotations: calibration looks at no label."""
        folder = self._training
        if not folder.is_dir():
            raise TaskError(f"{folder}: calibration needs training images there")
        return detection.ImageFolder(images_in(folder), pipeline)

    def scale(self, config: Any) -> tuple[int, int]:
        """Return the size in the config's test pipeline; 1333 x 800 if it has none."""
        for step in config.get("test_pipeline") or ():
            if step.get("type") == "Resize" and "scale" in step:
                long, short = step["scale"]
                return int(long), int(short)
        return SCALE

    @cached_property
    def _files(self) -> CocoFiles:
        root = self.require_root()
        images, _, annotations = self._layout
        path = self.options.val_labels or root / "annotations" / annotations
        return read_coco(path, root / images)

    @property
    def _layout(self) -> tuple[str, str, str]:
        root = self.require_root()
        found = [layout for layout in LAYOUTS if (root / layout[0]).is_dir()]
        return found[0] if found else LAYOUTS[0]

    @property
    def _training(self) -> Path:
        return self.require_root() / self._layout[1]

    def _checkpoint(self, model: str) -> Path:
        if self.options.checkpoint is None:
            raise TaskError(
                f"{model} needs its weights: give a file with --checkpoint (safetensors or a state "
                "dict; `bench convert checkpoint` makes one of an OpenMMLab training checkpoint)"
            )
        return self.options.checkpoint
