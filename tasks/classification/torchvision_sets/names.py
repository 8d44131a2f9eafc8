"""The data sets of torchvision that are read: where each has its images, labels and splits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_ptq_bench.tasks.errors import TaskError

PREFIX = "torchvision/"
"""What ``--dataset`` begins with, as timm's names of data sets begin with their library."""


@dataclass(frozen=True)
class Description:
    """How a class of ``torchvision.datasets`` is made, and what it holds.

    Attributes:
        training: arguments of the split that calibration draws from.
        judged: arguments of the split to judge on.
        images: attribute with the images: paths, an array of pixels, or pairs of path and label.
        labels: attribute with their labels; None: they stand beside the paths in ``images``.
        classes: attribute with their names, where the class has it.
        stored: for an array, the file (of several the first) that it is read from, below the root; ``{}``
            stands for the name of the data set. One for the training split, another for that to judge on.
    """

    training: Mapping[str, Any]
    judged: Mapping[str, Any]
    images: str
    labels: str | None = None
    classes: str = "classes"
    stored: tuple[str, str] | None = None


_Splits = tuple[Mapping[str, Any], Mapping[str, Any]]

_FLAG: _Splits = {"train": True}, {"train": False}
_SPLIT: _Splits = {"split": "train"}, {"split": "test"}
_TRAINVAL: _Splits = {"split": "trainval"}, {"split": "test"}
_MNIST = ("{}/raw/train-images-idx3-ubyte", "{}/raw/t10k-images-idx3-ubyte")
_CIFAR10 = ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch")
_CIFAR100 = ("cifar-100-python/train", "cifar-100-python/test")
_STL10 = ("stl10_binary/train_X.bin", "stl10_binary/test_X.bin")
_SVHN = ("train_32x32.mat", "test_32x32.mat")
_USPS = ("usps.bz2", "usps.t.bz2")

DESCRIPTIONS: Mapping[str, Description] = {
    "CIFAR10": Description(*_FLAG, "data", "targets", stored=_CIFAR10),
    "CIFAR100": Description(*_FLAG, "data", "targets", stored=_CIFAR100),
    "Country211": Description(*_SPLIT, "samples"),
    "DTD": Description(*_SPLIT, "_image_files", "_labels"),
    "FGVCAircraft": Description(*_TRAINVAL, "_image_files", "_labels"),
    "FashionMNIST": Description(*_FLAG, "data", "targets", stored=_MNIST),
    "Flowers102": Description(*_SPLIT, "_image_files", "_labels"),
    "Food101": Description(*_SPLIT, "_image_files", "_labels"),
    "GTSRB": Description(*_SPLIT, "_samples"),
    # Its WordNet ids say which outputs of a model of ImageNet-1k its ten classes are.
    "Imagenette": Description({"split": "train"}, {"split": "val"}, "_samples", classes="wnids"),
    "KMNIST": Description(*_FLAG, "data", "targets", stored=_MNIST),
    "MNIST": Description(*_FLAG, "data", "targets", stored=_MNIST),
    "OxfordIIITPet": Description(*_TRAINVAL, "_images", "_labels"),
    "RenderedSST2": Description(*_SPLIT, "_samples"),
    "STL10": Description(*_SPLIT, "data", "labels", stored=_STL10),
    "SVHN": Description(*_SPLIT, "data", "labels", stored=_SVHN),
    "StanfordCars": Description(*_SPLIT, "_samples"),
    "USPS": Description(*_FLAG, "data", "targets", stored=_USPS),
}
"""Data sets with one label an image and two splits or more, by torchvision's names.

Files of which an array is made are held against torchvision's checksums when the data set is opened (CIFAR's
are pickles, which is why it matters), or are one file, whose change is seen.
"""


def torchvision_name(dataset: str) -> str:
    """Return torchvision's name of the data set that ``--dataset`` names, in upper or lower case.

    Raises:
        TaskError: it is none, or none that is read; with what there is.
    """
    prefix, _, name = dataset.partition("/")
    known = {one.lower(): one for one in DESCRIPTIONS}
    if prefix.lower() == PREFIX[:-1] and name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches((name or prefix).lower(), known, 1)
    hint = f"did you mean {PREFIX}{known[near[0]]}? " if near else ""
    raise TaskError(
        f"--dataset {dataset!r}: {hint}there are {PREFIX} with {', '.join(DESCRIPTIONS)}; of another data "
        "set give the folder with --data-dir, and no --dataset"
    )
