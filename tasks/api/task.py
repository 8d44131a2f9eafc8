"""What every task has in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_ptq_bench.tasks.cache import TensorCache
from vit_ptq_bench.tasks.errors import TaskError

EvaluationProgress = Callable[[int, int], None]
"""Called with the number of finished images and of all images."""


@dataclass(frozen=True)
class TaskOptions:
    """Settings of a task, from the command line, the config file or the environment.

    Attributes:
        data_dir: root folder of the data set.
        val_labels: ground-truth file of a flat validation folder.
        checkpoint: weights to use instead of the task's own or timm's.
        limit: evaluate a seeded subset of this many images.
        batch_size: images per forward pass of the evaluation.
        loader_workers: processes that decode images; 0 decodes in the run's own process.
        holdout: judge on training images that calibration cannot draw, instead of the evaluation images: for
            choosing the settings of a method.
    """

    data_dir: Path | None = None
    val_labels: Path | None = None
    checkpoint: Path | None = None
    limit: int | None = None
    batch_size: int = 100
    loader_workers: int = 0
    holdout: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be quantized.

    Attributes:
        name: as it was asked for.
        module: float32, on the CPU, in eval mode.
        reference: figure of the first metric that full precision must reach, or None.
        tolerance: how far it may be off.
        source: where the reference comes from.
    """

    name: str
    module: nn.Module
    reference: float | None = None
    tolerance: float = 0.3
    source: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives; every figure in percent.

    Attributes:
        metrics: by name.
        intervals: 95 % interval of each metric.
        standard_errors: of each metric.
        n: images evaluated.
        outcomes: bool [n], whether each image counts as correct, in the order of the data set.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    standard_errors: dict[str, float]
    n: int
    outcomes: NDArray[np.bool_]


class Task:
    """Data, models and metrics. Subclass it, decorate with `register_task`.

    Attributes:
        name: lower-case name.
        version: raise it whenever figures change.
        metrics: names of the metrics; methods are ranked by the first.
        scopes: what of a model can be quantized, the usual first; empty where it is always the whole.
        dense: whether it is about detection, for which methods' authors use other numbers of images.
        small: whether its models are so small that a run computes on one thread: a second one costs more in
            waiting than it brings, and a sweep had better make several runs at a time.
        cache: holds what other runs of the sweep have decoded; None: nothing is reused.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    metrics: ClassVar[tuple[str, ...]]
    scopes: ClassVar[tuple[str, ...]] = ()
    dense: ClassVar[bool] = False
    small: ClassVar[bool] = False

    def __init__(self, options: TaskOptions | None = None) -> None:
        self.options = options or TaskOptions()
        self.cache: TensorCache | None = None

    def model_names(self) -> list[str]:
        """Return the models to list; a task may know more."""
        raise AssertionError("defined by each task")

    def knows_model(self, model: str) -> bool:
        """Whether a model can be asked for by this name."""
        return model in self.model_names()

    def weights_id(self, model: str) -> str:
        """Return what identifies the weights, without building the model."""
        raise AssertionError("defined by each task")

    def data_id(self) -> str:
        """Return what identifies evaluation and calibration data."""
        raise AssertionError("defined by each task")

    def load_model(self, model: str) -> LoadedModel:
        """Return a model with its weights.

        Raises:
            TaskError: unknown name, or a checkpoint that does not fit.
        """
        raise AssertionError("defined by each task")

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Return ``n`` training images, drawn by seed, as float32 batches [b, 3, H, W].

        Raises:
            TaskError: there are fewer than ``n`` training images, or one cannot be read.
        """
        raise AssertionError("defined by each task")

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Judge a model on the evaluation images (all of them, or ``options.limit``).

        Raises:
            TaskError: an image cannot be read.
        """
        raise AssertionError("defined by each task")


def subset(n: int, limit: int | None) -> NDArray[np.int64]:
    """Return the indices to evaluate: all, or ``limit`` drawn with a fixed seed, in order."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[:limit])


def require_root(root: Path | None) -> Path:
    """Return the data folder.

    Raises:
        TaskError: none was given, or it is not there.
    """
    if root is None:
        raise TaskError(
            "the imagenet task needs the folder that holds train/ and val/: give --data-dir, set "
            "BENCH_IMAGENET_DATA_DIR, or write data_dir under [tasks.imagenet] in bench.toml"
        )
    if not root.is_dir():
        raise TaskError(f"{root}: no such data folder")
    return root
