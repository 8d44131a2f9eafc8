"""The options of a task: what the user says of data, weights and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TaskOptions:
    """Settings of a task, from the command line, the config file or the environment.

    The metadata of each field has a line of ``help``, the ``metavar`` that stands for its value (None: it is
    a switch) and the least number: flags, keys and variables are made of them.

    Attributes:
        data_dir: root folder of the data set.
        val_labels: ground-truth file of a flat validation folder.
        checkpoint: weights to use instead of the task's own or timm's.
        limit: evaluate a seeded subset of this many images.
        batch_size: images per forward pass of the evaluation.
        loader_workers: processes that decode images; 0 decodes in the run's own process.
        holdout: judge on training images that calibration cannot draw, instead of the evaluation images: for
            choosing the settings of a method.
        class_map: class names of the labels, one a line, in the order of the model's outputs.
        calibration_dir: folder of the images that calibration draws where a suite calibrates on a ``folder``.
        incomplete: go on where more than a few images or labels have to be left out.
        dataset: name of a data set of torchvision in ``data_dir``, like ``torchvision/CIFAR10``; None: the
            folder itself tells its layout.
        num_classes: outputs that models have, where labels do not tell; None: nobody says it.
        checkpoints: of single models, by their names, in the place of ``checkpoint``; a suite says them.
        model_args: arguments with which single models are built, by their names; a suite says them.
    """

    data_dir: Path | None = field(
        default=None, metadata={"help": "folder of the data set", "metavar": "DIR"}
    )
    val_labels: Path | None = field(
        default=None,
        metadata={
            "help": "ground truth of flat validation images, where folders do not tell it",
            "metavar": "FILE",
        },
    )
    checkpoint: Path | None = field(
        default=None, metadata={"help": "weights instead of the model's own", "metavar": "FILE"}
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "evaluate on N images only",
            "metavar": "N",
            "at_least": 1,
            "at_most": 10**9,
        },
    )
    batch_size: int = field(
        default=100,
        metadata={
            "help": "images per forward pass",
            "metavar": "N",
            "at_least": 1,
            "at_most": 10**6,
        },
    )
    loader_workers: int = field(
        default=0,
        metadata={
            "help": "processes that decode images; 0: only the run's own",
            "metavar": "N",
            "at_least": 0,
            "at_most": 1024,
        },
    )
    holdout: bool = field(
        default=False,
        metadata={
            "help": "judge on training images that calibration cannot draw, to choose settings",
            "metavar": None,
        },
    )
    class_map: Path | None = field(
        default=None,
        metadata={
            "help": "class names of the labels, one a line, in the order of the model's outputs",
            "metavar": "FILE",
        },
    )
    calibration_dir: Path | None = field(
        default=None,
        metadata={
            "help": "folder of images of another domain, for suites with calibration = 'folder'",
            "metavar": "DIR",
        },
    )
    incomplete: bool = field(
        default=False,
        metadata={
            "help": "go on where more than a few images or labels have to be left out",
            "metavar": None,
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "a data set of torchvision in the folder, like torchvision/CIFAR10",
            "metavar": "NAME",
        },
    )
    num_classes: int | None = field(
        default=None,
        metadata={
            "help": "outputs of the models, where the labels are indices and do not tell how many there are",
            "metavar": "N",
            "at_least": 1,
            "at_most": 10**6,
        },
    )
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    model_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def weights_of(self, model: str) -> Path | None:
        """Return the checkpoint of a model; None: its own weights."""
        return self.checkpoints.get(model, self.checkpoint)
