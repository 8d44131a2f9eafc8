"""The bundled classification task: handwritten digits in colour, nothing to download."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from vit_ptq_bench.tasks import classification, storage
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.selection import subset
from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress, LoadedModel, Task
from vit_ptq_bench.tasks.classification.digit_rendering import (
    Pool,
    holdout_set,
    render,
    source_pools,
    test_set,
    training_pools,
)
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES, build_architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

RENDERING = "vit_ptq_bench.tasks.classification.digit_rendering"


@register_task
class Digits(Task):
    """Read scikit-learn's handwritten digits, rendered in colour on clutter at 32 x 32.

    2000 test pictures; calibration pictures are rendered by seed from the training digits, which are
    other digits than the test's. The models are the three bundled ones, or their architectures with the
    weights of ``checkpoint``. With ``holdout`` the pictures to judge on show training digits that the models'
    training only watched, and calibration draws from the other training digits.
    """

    name = "digits"
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
        """Return a hash over the test pictures and the training digits."""
        return f"{_data_id()}:holdout" if self.options.holdout else _data_id()

    def load_model(self, model: str) -> LoadedModel:
        """Load a bundled model; its card's figure is the reference."""
        self.require_model(model)
        source = storage.bundled_weights(model, self.options)
        module = build_architecture(model)
        weights = storage.load_weights(module, source, classification.adapted_state)
        return storage.bundled_model(model, module, self.options, weights)

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Render ``n`` pictures of training digits."""
        pictures, _ = render(self._training_pool(), n, np.random.default_rng([1, seed]))
        return classification.digit_batches(pictures, self.options.batch_size)

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Classify the test pictures."""
        pictures, labels = holdout_set() if self.options.holdout else test_set()
        chosen = subset(len(labels), self.options.limit)
        batches = classification.labelled_batches(
            pictures[chosen], labels[chosen], self.options.batch_size
        )
        return classification.classify(module, batches, device, len(chosen), progress)

    def _training_pool(self) -> Pool:
        return training_pools()[0] if self.options.holdout else source_pools()[0]


@cache
def _data_id() -> str:
    """Rendering takes seconds, as long as all the rest of planning."""
    key = storage.recipe_key((__name__, RENDERING), ("numpy", "scikit-learn"))
    return storage.kept_text("digits", key, _rendered_id)


def _rendered_id() -> str:
    pictures, labels = test_set()
    pool = source_pools()[0]
    return storage.arrays_id(pictures, labels, pool.images, pool.labels)
