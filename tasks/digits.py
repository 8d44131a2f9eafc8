"""The bundled task: handwritten digits in colour, nothing to download."""

import hashlib
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress, LoadedModel, Task, subset
from vit_ptq_bench.tasks.checkpoints import file_id, load_strictly, read_state_dict
from vit_ptq_bench.tasks.classification.digit_rendering import (
    Pool,
    render,
    source_pools,
    test_set,
    training_pools,
)
from vit_ptq_bench.tasks.classification.evaluation import classify
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES, MEAN, STD, build_architecture
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.model_cards import read_card, weights_path


def normalise(pictures: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 [n, 32, 32, 3] into float32 [n, 3, 32, 32] around zero."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@cache
def _data_hash() -> str:
    pictures, labels = test_set()
    pool = source_pools()[0]
    digest = hashlib.sha256()
    for array in (pictures, labels, pool.images, pool.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()}"


HOLDOUT_PICTURES = 2000


@cache
def holdout_set() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """2000 pictures of the training digits that no model was fitted to."""
    return render(training_pools()[1], HOLDOUT_PICTURES, np.random.default_rng([3, 0]))


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
    small = True

    def model_names(self) -> list[str]:
        """Return the bundled models."""
        return list(ARCHITECTURES)

    def weights_id(self, model: str) -> str:
        """Return the hash of the weights file."""
        self._require(model)
        return file_id(self.options.checkpoint or weights_path(model))

    def data_id(self) -> str:
        """Return a hash over the test pictures and the training digits."""
        return f"{_data_hash()}:holdout" if self.options.holdout else _data_hash()

    def load_model(self, model: str) -> LoadedModel:
        """Load a bundled model; its card's figure is the reference."""
        self._require(model)
        source = self.options.checkpoint or weights_path(model)
        module = build_architecture(model)
        load_strictly(module, read_state_dict(source), str(source))
        own = self.options.checkpoint is None and not self.options.holdout
        card = read_card(model) if own else None
        return LoadedModel(
            model, module, card.figure if card else None, source="tasks/weights/models.json"
        )

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Render ``n`` pictures of training digits."""
        pictures, _ = render(self._training_pool(), n, np.random.default_rng([1, seed]))
        return list(normalise(pictures).split(self.options.batch_size))

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
        size = self.options.batch_size
        batches = (
            (normalise(pictures[part]), torch.from_numpy(labels[part]))
            for part in np.split(chosen, range(size, len(chosen), size))
        )
        return classify(module, batches, device, len(chosen), progress)

    def _training_pool(self) -> Pool:
        return training_pools()[0] if self.options.holdout else source_pools()[0]

    def _require(self, model: str) -> None:
        if model not in ARCHITECTURES:
            raise TaskError(
                f"unknown model {model!r} for task digits; there are {', '.join(ARCHITECTURES)}"
            )
