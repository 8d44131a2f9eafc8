"""The ImageNet-1k task: timm models on the user's own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vit_ptq_bench.tasks import classification, storage
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.selection import drawn, subset
from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress, LoadedModel, Task
from vit_ptq_bench.tasks.classification.image_listing import (
    Sample,
    class_folders,
    flat_samples,
    folder_samples,
    listing_id,
    validation_folder,
)
from vit_ptq_bench.tasks.errors import TaskError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vit_ptq_bench.tasks.classification.image_cache import CachedImages

FULL_VALIDATION = 50_000

HOLDOUT_SEED = 20_240_609


@dataclass(frozen=True)
class Reference:
    """Published full-precision top-1 on the 50,000 validation images; two sources may differ."""

    top1: float
    tolerance: float = 0.3


REFERENCES = {
    "vit_small_patch16_224.augreg_in21k_ft_in1k": Reference(81.39),
    "vit_base_patch16_224.augreg_in21k_ft_in1k": Reference(84.54),
    "deit_tiny_patch16_224.fb_in1k": Reference(72.21),
    "deit_small_patch16_224.fb_in1k": Reference(79.85),
    "deit_base_patch16_224.fb_in1k": Reference(81.80, 0.5),
    "swin_tiny_patch4_window7_224.ms_in1k": Reference(81.39),
    "swin_small_patch4_window7_224.ms_in1k": Reference(83.23),
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k": Reference(85.27),
}
"""Full-precision figures that the PTQ papers (RepQ-ViT, PTQ4ViT, I&S-ViT) print for timm's weights."""

ARCHITECTURES = frozenset(name.partition(".")[0] for name in REFERENCES)
"""Of these timm need not be asked whether it knows them."""

FAMILIES = ("vit_*", "deit_*", "deit3_*", "swin_*")


@register_task
class ImageNet(Task):
    """Classify the ImageNet-1k validation images with a timm model.

    ``data_dir`` holds ``train/<class>/<image>`` and ``val/<class>/<image>``, or flat images in ``val``
    with ``val_labels``. Preprocessing is timm's own for each model. Calibration images come from the
    training folder, drawn by seed, with the evaluation's transform. Any timm name works; a name of a
    pretrained tag downloads its weights unless ``checkpoint`` gives a file. With ``holdout`` half of the
    training images, always the same, are judged on instead, and calibration draws from the other half.
    """

    name = "imagenet"
    version = 1
    metrics = ("top1", "top5")
    metric_titles = {"top5": "top5"}
    outcomes_metric = "top1"

    def model_names(self) -> list[str]:
        """Return timm's pretrained tags of the supported families."""
        key = storage.recipe_key((), ("timm",))
        names = storage.kept_text("timm-names", key, _pretrained_names)
        return names.split(",")

    def knows_model(self, model: str) -> bool:
        """Whether timm has an architecture of that name, with or without a tag."""
        return model.partition(".")[0] in ARCHITECTURES or classification.is_architecture(model)

    def weights_id(self, model: str) -> str:
        """Return the checkpoint's hash, or timm's full name of the pretrained weights."""
        if self.options.checkpoint is not None:
            return storage.file_id(self.options.checkpoint)
        self.require_model(model)
        return f"timm:{model if '.' in model else classification.full_name(model)}"

    def data_id(self) -> str:
        """Return a hash over names, sizes and labels of validation and training images."""
        root = self.require_root()
        train = folder_samples(root / "train") if (root / "train").is_dir() else []
        if self.options.holdout:
            return f"{listing_id(train, root)}:holdout"
        return listing_id([*self._validation, *train], root)

    def load_model(self, model: str) -> LoadedModel:
        """Build a timm model with its pretrained weights or those of the checkpoint."""
        self.require_model(model)
        checkpoint = self.options.checkpoint
        if checkpoint is None:
            return self._with_reference(model, classification.create_pretrained(model))
        module = classification.create_untrained(model)
        storage.load_strictly(module, storage.read_state_dict(checkpoint), str(checkpoint))
        return LoadedModel(model, module.eval())

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` training images without replacement."""
        samples = self._training[0]
        chosen = drawn(len(samples), n, seed, self.require_root() / "train")
        return [images for images, _ in self._images([samples[i] for i in chosen], loaded)]

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Classify the validation images."""
        samples = self._training[1] if self.options.holdout else self._validation
        self._check_classes(loaded, samples)
        chosen = [samples[i] for i in subset(len(samples), self.options.limit)]
        images = self._images(chosen, loaded, self.options.loader_workers)
        return classification.classify(module, images, device, len(chosen), progress)

    def _images(
        self, samples: Sequence[Sample], loaded: LoadedModel, loader_workers: int = 0
    ) -> CachedImages:
        config, transform = classification.preprocessing(loaded.module)
        files = classification.ImageFiles(samples, transform)
        return classification.CachedImages(
            files, self.options.batch_size, loader_workers, config, self.cache
        )

    @cached_property
    def _training(self) -> tuple[list[Sample], list[Sample]]:
        """Images that calibration draws from, and those held out."""
        folder = self.require_root() / "train"
        if not folder.is_dir():
            raise TaskError(
                f"{folder}: calibration needs training images there (<class>/<image>.JPEG)"
            )
        samples = folder_samples(folder)
        if not self.options.holdout:
            return samples, []
        order = np.random.default_rng(HOLDOUT_SEED).permutation(len(samples))
        half = len(samples) // 2
        return [samples[i] for i in order[half:]], [samples[i] for i in order[:half]]

    @cached_property
    def _validation(self) -> list[Sample]:
        folder = validation_folder(self.require_root())
        if self.options.val_labels is not None:
            return flat_samples(folder, self.options.val_labels)
        if not class_folders(folder):
            raise TaskError(
                f"{folder} has no class folders; if its images are flat, give their labels with "
                "--val-labels (one line per image: '<file name> <label>')"
            )
        return folder_samples(folder)

    def _check_classes(self, loaded: LoadedModel, samples: list[Sample]) -> None:
        """A wrong number of classes means other labels than the model was trained with."""
        classes = int(getattr(loaded.module, "num_classes", 0))
        root = self.require_root()
        folder = root / "train" if self.options.holdout else validation_folder(root)
        by_folder = self.options.holdout or self.options.val_labels is None
        found = len(class_folders(folder)) if by_folder else classes
        if found != classes:
            raise TaskError(
                f"{folder} has {found} class folders, {loaded.name} has {classes} classes"
            )
        largest = max(label for _, label in samples)
        if largest >= classes:
            raise TaskError(
                f"{self.options.val_labels}: label {largest}, but {loaded.name} has {classes} classes"
            )

    def _with_reference(self, model: str, module: nn.Module) -> LoadedModel:
        """The papers' figures hold for the full validation set only."""
        known = REFERENCES.get(classification.full_name(model))
        if known is None or self.options.holdout or len(self._validation) != FULL_VALIDATION:
            return LoadedModel(model, module)
        return LoadedModel(model, module, known.top1, known.tolerance, "PTQ papers on timm weights")

    def require_model(self, model: str) -> None:
        """Refuse a name that timm does not have.

        Raises:
            TaskError: with names that are nearly so.
        """
        if self.knows_model(model):
            return
        near = classification.near_names(model)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise TaskError(f"timm has no model {model!r}{hint}")


def _pretrained_names() -> str:
    """Names of timm's pretrained models, at which timm takes seconds to look."""
    return ",".join(classification.pretrained_names(FAMILIES))
