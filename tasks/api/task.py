"""The contract of a task: its options, the model it hands out, the evaluation it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.errors import TaskError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vit_ptq_bench.tasks.api.cache import TensorCache
    from vit_ptq_bench.tasks.api.network import Network

EvaluationProgress = Callable[[int, int], None]
"""Called with the number of finished images and of all images."""


@dataclass(frozen=True)
class ImageForm:
    """What the images are like that a model takes, for images that are made and not read.

    Attributes:
        size: height and width in pixels.
        mean: of each of the three channels, what is subtracted from pixels in [0, 1].
        std: of each channel, what the difference is divided by.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be quantized.

    Attributes:
        name: as it was asked for.
        module: float32, on the CPU, in eval mode.
        reference: figure of the first metric that full precision must reach, or None.
        tolerance: how far it may be off.
        source: where the reference comes from.
        weights: identity of the weights, made from the very bytes that were loaded; a run that is about other
            weights is refused. None: they have a published name.
        notes: what has to be said of how the weights were read, a sentence each: which of several were taken,
            position embeddings that were resampled.
    """

    name: str
    module: nn.Module
    reference: float | None = None
    tolerance: float = 0.3
    source: str = ""
    weights: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives; every figure in percent.

    Attributes:
        metrics: by name.
        intervals: 95 % interval of each metric.
        standard_errors: of each metric.
        n: images evaluated.
        outcomes: bool [n], whether each image counts as correct, in the order of the data set.
        replicates: [R], the first metric on image sets drawn with replacement, for paired comparisons; every
            evaluation of the same data must draw the same sets. None: the metric is the share of right
            outcomes, which tell it.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    standard_errors: dict[str, float]
    n: int
    outcomes: NDArray[np.bool_]
    replicates: NDArray[np.float64] | None = None


class Task(ABC):
    """Data, models and metrics. Subclass it, decorate with `register_task`.

    Listing and planning need `model_names`, `knows_model`, `weights_id`, `data_id`, `calibration_id` and
    `data_notes` only: where these do without torch, so does ``bench run --dry-run``.

    Attributes:
        name: lower-case name.
        version: raise it whenever figures change.
        metrics: names of the metrics; methods are ranked by the first.
        metric_titles: metrics that tables show beside the first, in their order, with the titles of their
            columns, without the unit (every figure is in percent).
        scopes: what of a model can be quantized, the usual first; empty where it is always the whole.
        dense: whether it is about detection, for which methods' authors use other numbers of images.
        outcomes_metric: the metric that is the share of right outcomes; None: none is.
        small: whether its models are so small that a run computes on one thread: a second one costs more in
            waiting than it brings, and a sweep had better make several runs at a time.
        preload: dotted names of modules that a sweep imports once, in the process that its runs are forked
            from: what takes long to import and every run of the task needs.
        takes_model_args: whether models can be built with arguments of the user's, ``options.model_args``.
        cache: holds what other runs of the sweep have decoded; None: nothing is reused.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    metrics: ClassVar[tuple[str, ...]]
    metric_titles: ClassVar[Mapping[str, str]] = {}
    scopes: ClassVar[tuple[str, ...]] = ()
    dense: ClassVar[bool] = False
    outcomes_metric: ClassVar[str | None] = None
    small: ClassVar[bool] = False
    preload: ClassVar[tuple[str, ...]] = ()
    takes_model_args: ClassVar[bool] = False

    def __init__(self, options: TaskOptions | None = None) -> None:
        self.options = options or TaskOptions()
        self.cache: TensorCache | None = None

    @abstractmethod
    def model_names(self) -> list[str]:
        """Return the models to list; a task may know more."""

    def knows_model(self, model: str) -> bool:
        """Whether a model can be asked for by this name."""
        return model in self.model_names()

    def unlisted_names(self, pattern: str) -> list[str]:
        """Return models that a glob matches among those that the task knows and does not list.

        Asked where it matches none of the listed ones, to say why they are not supported.
        """
        return []

    def model_remark(self, model: str) -> str | None:
        """Return what has to be said of a model in the list of models, or None."""
        return None

    def names_code(self, model: str) -> bool:
        """Whether this name is a file that is run when the model is loaded.

        Such a name must be the user's own word: it is never taken from a file that is only to be read.
        """
        return False

    @abstractmethod
    def weights_id(self, model: str) -> str:
        """Return what identifies the weights, without building the model."""

    @abstractmethod
    def data_id(self) -> str:
        """Return what identifies evaluation and calibration data."""

    def calibration_id(self, n: int, seed: int) -> str | None:
        """Return what identifies the images that `calibration_batches` would draw, by their content.

        None: `data_id` covers them, or there is no such draw (which the run then says).
        """
        return None

    def training_images(self) -> int | None:
        """Return how many images `calibration_batches` can draw from; None: that is not known before it runs.

        Asked after `data_id`: a sweep with runs that ask for more is refused before anything runs.

        Raises:
            TaskError: there is nothing to draw from.
        """
        return None

    def weights_problem(self, model: str) -> str | None:
        """Return why the user's weights cannot be loaded into a model, in words, or None.

        Asked after `data_id`, and before anything runs: a sweep of such a model is refused.
        """
        return None

    def weights_to_fetch(self, model: str) -> str | None:
        """Return where published weights of a model would be fetched from; None: they are on this machine.

        Nothing is fetched to find out. A dry run says it: without a network such a run fails.
        """
        return None

    def evaluated_images(self) -> int | None:
        """Return how many images a run is judged on; None: that is not known before it runs.

        Asked after `data_id`, to tell how long a sweep will take.
        """
        return None

    def data_notes(self) -> tuple[str, ...]:
        """Return what has to be said of how the data were read, a sentence each.

        The form of labels, files that were left out, annotations that were normalised. They are printed
        before a sweep starts, and stand in every record.
        """
        return ()

    @abstractmethod
    def load_model(self, model: str) -> LoadedModel:
        """Return a model with its weights.

        Raises:
            TaskError: unknown name, or a checkpoint that does not fit.
        """

    def network(self, loaded: LoadedModel) -> Network | None:
        """Return what builds the network of a model again, without its weights.

        None: a file cannot say it, because building it runs a program of the user's, or this task does not.
        """
        return None

    @classmethod
    def model_arguments(cls, weights: str | None) -> Mapping[str, Any]:
        """Return the arguments of the user's own that a model was built with, as `weights_id` tells them."""
        return {}

    def licence(self, model: str) -> str | None:
        """Return the licence of a model's weights, an SPDX identifier where it has one; None: not known."""
        return None

    def untrained(self, model: str, network: Network, at_most: int | None = None) -> LoadedModel:
        """Return the model that a file describes, with weights that mean nothing.

        Args:
            model: its name.
            network: the description, which `network` gave for it; nothing in it is executed.
            at_most: number of parameters that the model may have, a bound on the memory it takes.

        Raises:
            TaskError: it describes no network of this task, one of another builder, or a larger one.
        """
        raise TaskError(f"task {self.name} does not build networks from files")

    def from_code(self, model: str, weights: str | None) -> LoadedModel:
        """Return the model of a file that the user named, with weights that need not mean anything.

        Asked where `names_code`: a saved model holds the tensors, but nothing that builds the network.

        Args:
            model: path of the file, which is run.
            weights: what `weights_id` told when the model was saved.

        Raises:
            TaskError: the file is not what it was then, or builds no model of this task.
        """
        return self.load_model(model)

    @abstractmethod
    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Return ``n`` training images, drawn by seed, as float32 batches [b, 3, H, W].

        Raises:
            TaskError: there are fewer than ``n`` training images, or one cannot be read.
        """

    def folder_id(self) -> str:
        """Return what identifies the images of ``options.calibration_dir``: their contents, not their place.

        Raises:
            TaskError: there is no such folder, it has no images, or this task cannot calibrate on a folder.
        """
        raise TaskError(f"task {self.name} cannot calibrate on the images of a folder")

    def check_folder(self, n: int, seed: int) -> tuple[str, ...]:
        """Refuse images that `folder_batches` could not give, and return what has to be said of the others.

        Raises:
            TaskError: there are fewer than ``n`` images in the folder, or one of those drawn cannot be read.
        """
        raise TaskError(f"task {self.name} cannot calibrate on the images of a folder")

    def folder_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Return ``n`` images of the folder, drawn by seed, as float32 batches [b, 3, H, W].

        Raises:
            TaskError: what `check_folder` raises.
        """
        raise TaskError(f"task {self.name} cannot calibrate on the images of a folder")

    def image_form(self, loaded: LoadedModel) -> ImageForm:
        """Return what images of a model are like, for a calibration on images that are made.

        Raises:
            TaskError: this task does not say.
        """
        raise TaskError(
            f"task {self.name} does not say what its models' images are like, so none can be made"
        )

    def architecture(self, model: str) -> str | None:
        """Return what identifies the layers of a model, without building it: what `skeleton` would give.

        None: it is known to be of a supported family, or this task cannot say, and whether a method can take
        the model is found out when it is loaded.
        """
        return None

    def skeleton(self, model: str) -> nn.Module:
        """Return a model without its weights, on torch's meta device, where they would take no memory.

        Asked only of models with an `architecture`.
        """
        raise TaskError(f"task {self.name} does not build models without their weights")

    def operations(self, model: str) -> int | None:
        """Return the multiply-accumulates of one image in full precision, by which models' seconds compare.

        None: this task does not know.
        """
        return None

    @abstractmethod
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

    def require_model(self, model: str) -> None:
        """Refuse a name that no model has.

        Raises:
            TaskError: with the names that there are.
        """
        if not self.knows_model(model):
            known = ", ".join(self.model_names())
            raise TaskError(f"unknown model {model!r} for task {self.name}; there are {known}")

    def require_root(self) -> Path:
        """Return the data folder of a task whose data are the user's.

        Raises:
            TaskError: none was given, or it is not there.
        """
        root = self.options.data_dir
        if root is None:
            raise TaskError(
                f"the task {self.name} needs the folder of its data: give --data-dir, set "
                f"BENCH_{self.name.upper().replace('-', '_')}_DATA_DIR, or write data_dir under "
                f"[tasks.{self.name}] in bench.toml"
            )
        if not root.is_dir():
            raise TaskError(f"{root}: no such data folder")
        return root
