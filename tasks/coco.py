"""The COCO task: mmdet detectors on the user's own images."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.tasks import detection, storage
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.selection import subset
from vit_ptq_bench.tasks.api.task import LoadedModel
from vit_ptq_bench.tasks.detection.data import CocoFiles, read_coco
from vit_ptq_bench.tasks.detection.pictures import images_in
from vit_ptq_bench.tasks.detection.task import DetectionTask
from vit_ptq_bench.tasks.detection.zoo import (
    BUNDLED,
    BUNDLED_SCALE,
    COCO_MODELS,
    builders_id,
    config_id,
    config_path,
    is_config_file,
)
from vit_ptq_bench.tasks.errors import TaskError

if TYPE_CHECKING:
    from torch import nn

LAYOUTS = (("val2017", "train2017", "instances_val2017.json"), ("val", "train", "val.json"))
"""Folders of evaluation and training images, and the file under ``annotations``."""

SCALE = (1333, 800)
"""The size of nearly all published figures: short side 800, long side 1333 at most."""

VAL2017, COCO_CLASSES = 5_000, 80
"""Images of COCO's validation set, and classes of its annotations."""


@register_task
class Coco(DetectionTask):
    """Find the objects of COCO val2017, or of any data set in COCO's form, with an mmdet detector.

    ``data_dir`` holds ``val2017/``, ``train2017/`` and ``annotations/instances_val2017.json`` (or ``val/``,
    ``train/`` and ``annotations/val.json``); ``val_labels`` is another annotation file. Models are Mask R-CNN
    and Cascade Mask R-CNN with Swin-T and Swin-S, the bundled architectures, or the path of an mmdet config
    file (one-stage ones too), always with the weights of ``checkpoint``. Preprocessing is mmdet's, at the
    size that the config's test pipeline names; for the bundled architectures that is the size of their
    scenes, 160 x 160.
    Calibration images come from the training folder, drawn by seed.
    """

    name = "coco"
    version = 1

    def model_names(self) -> list[str]:
        """Return the detectors known by name."""
        return [*COCO_MODELS, *BUNDLED]

    def knows_model(self, model: str) -> bool:
        """Whether it is a name, or a config file."""
        return model in self.model_names() or (model.endswith(".py") and Path(model).is_file())

    def names_code(self, model: str) -> bool:
        """Whether it is the path of a config file, which is a program."""
        return is_config_file(model)

    def weights_id(self, model: str) -> str:
        """Return the checkpoint's hash, with those of a config file of the user's own and its bases.

        With a bundled architecture the size of its images is told: it was another one once.
        """
        return _with_config(storage.file_id(self._checkpoint(model)), model)

    def licence(self, model: str) -> str | None:
        """Return what the checkpoint's file states."""
        return storage.stated_licence(self.options.weights_of(model))

    def data_id(self) -> str:
        """Return a hash over the annotations, and the names and contents of the images to judge on."""
        return detection.contents_id(self.judged_pictures(), self.files().digest)

    def calibration_id(self, n: int, seed: int) -> str | None:
        """Return a hash over the contents of the drawn training images."""
        folder = self._training
        if n == 0 or not folder.is_dir() or n > len(images_in(folder)):
            return None
        return detection.contents_id(self.drawn_pictures(n, seed))

    def training_images(self) -> int:
        """Return how many images lie in the folder of training images."""
        return len(self.calibration_images())

    def weights_problem(self, model: str) -> str | None:
        """Return why the checkpoint's tensors do not fit the model."""
        return storage.checkpoint_problem(self, model)

    def evaluated_images(self) -> int:
        """Return how many images of the annotation file judge."""
        return len(subset(len(self.files().data["images"]), self.options.limit))

    def load_model(self, model: str) -> LoadedModel:
        """Build a detector with the weights of the checkpoint.

        Of one of mmdet's own, on the whole of val2017, the figure that mmdet publishes is the reference.
        """
        checkpoint = self._checkpoint(model)
        module, weights = self.build(model, checkpoint)
        identity = _with_config(weights.identity, model)
        notes = (*weights.notes, *self._size_notes(model))
        loaded = LoadedModel(model, module, weights=identity, notes=notes)
        if not self._is_val2017(loaded):
            return loaded
        known = detection.published_box_ap(checkpoint, weights.identity)
        return replace(loaded, reference=known, source="mmdet's metafile of the checkpoint")

    def from_code(self, model: str, weights: str | None) -> LoadedModel:
        """Build the detector of a config file, without a checkpoint, if it is the config of then."""
        config = (weights or "").partition(" ")[2]
        if config and config != config_id(model):
            raise TaskError(
                f"{model}, or what it inherits from, is not the config that the saved model was made with "
                "(other hashes); give that one"
            )
        module = self._architecture(model, len(self.files().classes), self.files().has_masks)
        self._require_classes(model, module)
        return LoadedModel(model, module, notes=self._size_notes(model))

    def architecture(self, model: str) -> str | None:
        """Return what identifies a config file and what builds it; None: a name, whose layers are known."""
        if not is_config_file(model):
            return None
        return f"{config_id(model)} {builders_id()}"

    def skeleton(self, model: str) -> nn.Module:
        """Build the detector of a config on the meta device; its test pipeline is held against ours."""
        self.require_model(model)
        config = detection.read_config(config_path(model))
        self.scale(config)
        # mmdet's constructors look at numbers, which the meta device does not have.
        return detection.build_detector(config).to("meta")

    def files(self) -> CocoFiles:
        """Return the evaluation images."""
        return self._files

    def calibration_images(self) -> list[Path]:
        """Return the training images; calibration looks at no label."""
        folder = self._training
        if not folder.is_dir():
            raise TaskError(f"{folder}: calibration needs training images there")
        return images_in(folder)

    def scale(self, config: Any) -> tuple[int, int]:
        """Return the size in the config's test pipeline; 1333 x 800 if it has none."""
        named = detection.test_scale(config)
        self._size_is_named = named is not None
        return named or SCALE

    def _is_val2017(self, loaded: LoadedModel) -> bool:
        """Whether published figures hold: all images of val2017, at the size that they are of."""
        whole = len(self._chosen) == VAL2017 and len(self.files().classes) == COCO_CLASSES
        return whole and self._scale_of(loaded) == SCALE

    def _size_notes(self, model: str) -> tuple[str, ...]:
        """A sentence where the size of images is not what the user's own config says."""
        if model in BUNDLED:
            long, short = BUNDLED_SCALE
            return (
                f"images are resized to {long} x {short} at most, the size of the architecture {model}; for "
                "another one give a config file as the model",
            )
        if is_config_file(model) and not self._size_is_named:
            return (
                f"images are resized to {SCALE[0]} x {SCALE[1]} at most: {model} names no size",
            )
        return ()

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
        checkpoint = self.options.weights_of(model)
        if checkpoint is None:
            raise TaskError(
                f"{model} needs its weights: give a file with --checkpoint (safetensors or a state "
                "dict; `bench convert checkpoint` makes one of an OpenMMLab training checkpoint)"
            )
        return checkpoint


def _with_config(weights: str, model: str) -> str:
    """The identity of weights that a config file of the user's own makes a detector of."""
    if model in BUNDLED:
        return f"{weights} at {BUNDLED_SCALE[0]}x{BUNDLED_SCALE[1]}"
    return f"{weights} {config_id(model)}" if is_config_file(model) else weights
