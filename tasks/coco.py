"""The COCO task: mmdet detectors on the user's own images."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.task import LoadedModel, require_root
from vit_ptq_bench.tasks.checkpoints import file_id
from vit_ptq_bench.tasks.detection.data import CocoFiles, read_coco
from vit_ptq_bench.tasks.detection.task import DetectionTask
from vit_ptq_bench.tasks.detection.zoo import BUNDLED, COCO_MODELS, config_path
from vit_ptq_bench.tasks.errors import TaskError

LAYOUTS = (("val2017", "train2017", "instances_val2017.json"), ("val", "train", "val.json"))
"""Folders of evaluation and training images, and the file under ``annotations``."""


IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


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
        weights = file_id(self._checkpoint(model))
        if model in self.model_names():
            return weights
        return f"{weights} {file_id(config_path(model))}"

    def data_id(self) -> str:
        """Return a hash over the annotations and the names and sizes of all images."""
        files = self.files()
        digest = hashlib.sha256(files.annotations.read_bytes())
        for folder in (files.images, self._training):
            for path in _images(folder) if folder.is_dir() else []:
                digest.update(f"{path.name}\0{path.stat().st_size}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def load_model(self, model: str) -> LoadedModel:
        """Build a detector with the weights of the checkpoint."""
        module, _ = self.build(model, self._checkpoint(model))
        return LoadedModel(model, module)

    def files(self) -> CocoFiles:
        """Return the evaluation images."""
        return self._files

    def calibration_dataset(self, pipeline: list[Any]) -> Any:
        """Return the training images, without annotations: calibration looks at no label."""
        folder = self._training
        if not folder.is_dir():
            raise TaskError(f"{folder}: calibration needs training images there")
        return _Folder(_images(folder), pipeline)

    def scale(self, config: Any) -> tuple[int, int]:
        """Return the size in the config's test pipeline; 1333 x 800 if it has none."""
        for step in config.get("test_pipeline") or ():
            if step.get("type") == "Resize" and "scale" in step:
                long, short = step["scale"]
                return int(long), int(short)
        return SCALE

    @cached_property
    def _files(self) -> CocoFiles:
        root = require_root(self.options.data_dir)
        images, _, annotations = self._layout
        path = self.options.val_labels or root / "annotations" / annotations
        return read_coco(path, root / images)

    @property
    def _layout(self) -> tuple[str, str, str]:
        root = require_root(self.options.data_dir)
        found = [layout for layout in LAYOUTS if (root / layout[0]).is_dir()]
        return found[0] if found else LAYOUTS[0]

    @property
    def _training(self) -> Path:
        return require_root(self.options.data_dir) / self._layout[1]

    def _checkpoint(self, model: str) -> Path:
        if self.options.checkpoint is None:
            raise TaskError(
                f"{model} needs its weights: give a file with --checkpoint (safetensors or a state "
                "dict; `bench convert checkpoint` makes one of an OpenMMLab training checkpoint)"
            )
        return self.options.checkpoint


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


class _Folder:
    """Images of a folder in the form of mmdet's data sets."""

    def __init__(self, paths: list[Path], pipeline: list[Any]) -> None:
        import mmdet.datasets.transforms  # noqa: F401  registers mmdet's steps
        from mmcv.transforms import Compose

        self._paths, self._pipeline = paths, Compose(pipeline)

    def __len__(self) -> int:
        return len(self._paths)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return what the pipeline starts from."""
        return {"img_path": str(self._paths[index]), "img_id": index}

    def prepare_data(self, index: int) -> Any:
        """Run the pipeline on one image."""
        return self._pipeline(self.get_data_info(index))
