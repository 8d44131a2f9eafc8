"""The bundled classification task: pictures of clothes from Fashion-MNIST, nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vit_ptq_bench.tasks import classification, storage
from vit_ptq_bench.tasks.api.network import Network
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.selection import drawn, subset
from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress, ImageForm, LoadedModel
from vit_ptq_bench.tasks.classification.fashion_pictures import (
    SIZE,
    SLICE_SIZES,
    SLICES,
    Pictures,
    fashion_slice,
    read_pictures,
)
from vit_ptq_bench.tasks.classification.image_folder import FolderCalibration
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES, MEAN, STD, build_architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@register_task
class Fashion(FolderCalibration):
    """Name the garment on a picture of Fashion-MNIST: 10 classes, 28 x 28 pixels.

    The first 2000 pictures of the test set, 200 of every class, judge; calibration draws from 2000 of the
    training set. The models are the three bundled ones, or their architectures with the weights of
    ``checkpoint``. With ``holdout`` 1000 other pictures of the training set judge, which the models were not
    trained on.
    """

    name = "fashion"
    version = 1
    metrics = ("top1", "top5")
    metric_titles = {"top5": "top5"}
    outcomes_metric = "top1"
    small = True

    def model_names(self) -> list[str]:
        """Return the bundled models."""
        return list(ARCHITECTURES)

    def weights_id(self, model: str) -> str:
        """Return the hash of the weights file."""
        self.require_model(model)
        return storage.file_id(storage.bundled_weights(model, self.options))

    def data_id(self) -> str:
        """Return a hash over the pictures that judge and those of which calibration draws."""
        return f"{_data_id()}:holdout" if self.options.holdout else _data_id()

    def training_images(self) -> int:
        """Return how many pictures of the training set calibration draws from."""
        return SLICE_SIZES["training"]

    def weights_problem(self, model: str) -> str | None:
        """Return why the checkpoint's tensors do not fit the model."""
        return storage.checkpoint_problem(self, model)

    def evaluated_images(self) -> int:
        """Return how many pictures judge."""
        return len(subset(len(self._judging().labels), self.options.limit))

    def load_model(self, model: str) -> LoadedModel:
        """Load a bundled model; its card's figure is the reference."""
        self.require_model(model)
        source = storage.bundled_weights(model, self.options)
        module = build_architecture(model)
        weights = storage.load_weights(module, source, classification.adapted_state)
        return storage.bundled_model(model, module, self.options, weights)

    def licence(self, model: str) -> str | None:
        """Return the project's licence; of weights of the user's own what their file states."""
        return storage.stated_licence(self.options.weights_of(model), storage.LICENCE)

    def network(self, loaded: LoadedModel) -> Network:
        """Return the bundled architecture's name."""
        return Network(classification.BUNDLED, loaded.name)

    def untrained(self, model: str, network: Network, at_most: int | None = None) -> LoadedModel:
        """Build the bundled architecture that a file names."""
        return LoadedModel(model, classification.build_bundled(network, at_most))

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` pictures of the training set."""
        pictures = fashion_slice("training").images
        chosen = drawn(len(pictures), n, seed, SLICES)
        return classification.picture_batches(pictures[chosen], self.options.batch_size)

    def read_images(
        self, loaded: LoadedModel, paths: Sequence[Path], contents: Sequence[str]
    ) -> list[Tensor]:
        """Read any images as pictures of this task: grey, the middle square, 28 x 28 pixels."""
        pictures = read_pictures(paths, contents)
        return classification.picture_batches(pictures, self.options.batch_size)

    def image_form(self, loaded: LoadedModel) -> ImageForm:
        """Return the form of the bundled models' pictures."""
        return ImageForm((SIZE, SIZE), (MEAN,) * 3, (STD,) * 3)

    def operations(self, model: str) -> int:
        """Return the multiply-accumulates of one picture."""
        self.require_model(model)
        return classification.multiply_accumulates(
            lambda: build_architecture(model), (3, SIZE, SIZE)
        )

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Classify the pictures that judge."""
        judging = self._judging()
        chosen = subset(len(judging.labels), self.options.limit)
        batches = classification.labelled_batches(
            judging.images[chosen], judging.labels[chosen], self.options.batch_size
        )
        return classification.classify(module, batches, device, len(chosen), progress)

    def _judging(self) -> Pictures:
        return fashion_slice("holdout" if self.options.holdout else "test")


@cache
def _data_id() -> str:
    parts = (fashion_slice(name) for name in ("test", "training"))
    return storage.arrays_id(*(array for part in parts for array in (part.images, part.labels)))
