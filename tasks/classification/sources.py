"""Where a classification task has its images from: folders, rows of a data set, torchvision's data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.classification.contents import names_id
from vit_ptq_bench.tasks.classification.image_listing import (
    VALIDATION_FOLDERS,
    list_classes,
    told,
    validation_folder,
)
from vit_ptq_bench.tasks.classification.labelled_images import (
    LabelledImages,
    from_file,
    from_folders,
    from_numbers,
)
from vit_ptq_bench.tasks.classification.shards.files import (
    SUFFIX,
    TRAINING,
    find_shards,
    judged_split,
    require_no_other,
)
from vit_ptq_bench.tasks.classification.shards.table import Rows, ShardRow, read_rows
from vit_ptq_bench.tasks.classification.torchvision_sets.images import Part, read_part
from vit_ptq_bench.tasks.classification.torchvision_sets.names import PREFIX, torchvision_name
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import Stored


@dataclass(frozen=True)
class Training:
    """The images that calibration draws from.

    Attributes:
        images: in the order in which draws count them.
        identity: hash over their names.
        classes: names of the class folders; empty: there are no such folders.
        notes: what was left out, a sentence each.
        labelled: gives them with their labels, in the same order.
    """

    images: tuple[Stored, ...]
    identity: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    labelled: Callable[[], LabelledImages]


class Source(ABC):
    """The images of a data set on disk."""

    layout: ClassVar[str]
    """How training images lie, for errors."""

    @property
    @abstractmethod
    def training_place(self) -> str:
        """Where training images are, or would be, for errors."""

    @property
    @abstractmethod
    def training(self) -> Training | None:
        """The training images; None: there are none.

        Raises:
            TaskError: they cannot be read, or too many are left out.
        """

    @property
    @abstractmethod
    def judged(self) -> LabelledImages:
        """The images to judge on.

        Raises:
            TaskError: there are none, their labels are none, or too many are left out.
        """


class Folders(Source):
    """``train/<class>/<image>`` and ``val/<class>/<image>``, or flat images with a ground-truth file."""

    layout = "<class>/<image>.JPEG"

    def __init__(self, root: Path, options: TaskOptions) -> None:
        self._root, self._options = root, options

    @property
    def training_place(self) -> str:
        """The folder of training images."""
        return str(self._root / TRAINING)

    @cached_property
    def training(self) -> Training | None:
        """The images in class folders of ``train``."""
        folder, options = self._root / TRAINING, self._options
        if not folder.is_dir():
            return None
        listing = list_classes(folder)
        return Training(
            listing.images,
            names_id(listing.images, folder),
            listing.classes,
            tuple(told(listing.losses(), options.incomplete)),
            lambda: from_folders(listing, options.class_map, options.incomplete),
        )

    @cached_property
    def judged(self) -> LabelledImages:
        """The images in class folders of ``val``, or flat in it."""
        options = self._options
        folder = validation_folder(self._root)
        if options.val_labels is not None:
            return from_file(folder, options.val_labels, options.class_map, options.incomplete)
        trained = self.training.classes if self.training is not None else ()
        return from_folders(list_classes(folder), options.class_map, options.incomplete, trained)


class Shards(Source):
    """Parquet shards with the columns ``image`` and ``label``.

    Images are drawn in the order of label and file name, which is that of class folders; where a row has no
    file name, or two have the same, in the order of the rows.
    """

    layout = f"{TRAINING}-00000-of-00001{SUFFIX}"

    def __init__(self, root: Path, shards: dict[str, list[Path]], options: TaskOptions) -> None:
        self._root, self._shards, self._options = root, shards, options

    @property
    def training_place(self) -> str:
        """The shards of training images."""
        return f"{TRAINING} of {self._root}"

    @cached_property
    def training(self) -> Training | None:
        """The rows of the shards of ``train``."""
        if TRAINING not in self._shards:
            return None
        images, labels, names, classes = _in_order(self._shards[TRAINING])
        identity = _identity(labels, names)
        return Training(
            tuple(images),
            identity,
            (),
            (),
            lambda: from_numbers(
                images, labels, classes, self._of(TRAINING), self._options.class_map
            ),
        )

    @cached_property
    def judged(self) -> LabelledImages:
        """The rows of the shards of ``validation``, or of the like."""
        split = judged_split(self._shards, self._root)
        images, labels, _, classes = _in_order(self._shards[split])
        return from_numbers(images, labels, classes, self._of(split), self._options.class_map)

    def _of(self, split: str) -> str:
        shards = len(self._shards[split])
        return f"{split} ({shards} parquet {'shard' if shards == 1 else 'shards'})"


class Torchvision(Source):
    """A data set of torchvision, in the order in which torchvision has its images.

    Labels are those of torchvision, outputs of a model that was trained on the data set; names that are
    WordNet ids of ImageNet-1k, and all names where a class map is given, mean what those of folders do.
    """

    layout = "as torchvision keeps it"

    def __init__(self, root: Path, name: str, options: TaskOptions) -> None:
        self._root, self._name, self._options = root, name, options

    @property
    def training_place(self) -> str:
        """The training split."""
        return f"training images of {self._name} in {self._root}"

    @cached_property
    def training(self) -> Training | None:
        """The training split."""
        part = read_part(self._name, self._root, training=True)
        names = [_below(image, self._root, i) for i, image in enumerate(part.images)]
        return Training(
            tuple(part.images),
            _identity(part.labels, names),
            (),
            (),
            lambda: self._labelled(part, "training"),
        )

    @cached_property
    def judged(self) -> LabelledImages:
        """The test split."""
        return self._labelled(read_part(self._name, self._root, training=False), "test")

    def _labelled(self, part: Part, split: str) -> LabelledImages:
        what = f"{PREFIX}{self._name} ({split})"
        return from_numbers(part.images, part.labels, part.classes, what, self._options.class_map)


def _below(image: Stored, root: Path, number: int) -> str:
    """The name of an image file without what differs between machines; of a piece of a file its number."""
    return image.relative_to(root).as_posix() if isinstance(image, Path) else str(number)


def _identity(labels: Sequence[int], names: Sequence[str]) -> str:
    """Hash over labels and names of images."""
    lines = (f"{label}/{name}" for label, name in zip(labels, names, strict=True))
    return hashlib.sha256("\0".join(lines).encode()).hexdigest()


def _in_order(
    files: list[Path],
) -> tuple[list[ShardRow], list[int], list[str], tuple[str, ...] | None]:
    """Rows in the order of draws, their labels and names, and the classes.

    Raises:
        TaskError: a shard that cannot be read, classes that differ between shards, or no row.
    """
    parts = [read_rows(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.classes != parts[0].classes:
            raise TaskError(
                f"{file}: names other classes than {files[0]}; they are of two data sets"
            )
    rows = [
        (int(label), name, ShardRow(file, row))
        for file, part in zip(files, parts, strict=True)
        for row, (label, name) in enumerate(zip(part.labels, _names(file, part), strict=True))
    ]
    if not rows:
        raise TaskError(f"{files[0]}: holds no row")
    if all(part.names is not None for part in parts) and len({row[:2] for row in rows}) == len(
        rows
    ):
        rows.sort(key=lambda row: row[:2])
    labels, names, images = (list(column) for column in zip(*rows, strict=True))
    return images, labels, names, parts[0].classes


def _names(file: Path, part: Rows) -> list[str]:
    return part.names or [f"{file.name}:{row}" for row in range(len(part.labels))]


def source_of(root: Path, options: TaskOptions) -> Source:
    """Return where the images of a folder are: a data set that is named, shards if it holds any, or folders.

    Raises:
        TaskError: folders and shards lie together, shards or a named data set with a ground-truth file, or an
            unknown name.
    """
    if options.dataset is not None:
        if options.val_labels is not None:
            raise TaskError(f"--val-labels: {options.dataset} has its own labels; leave it out")
        return Torchvision(root, torchvision_name(options.dataset), options)
    shards = find_shards(root, options.incomplete)
    if not shards:
        require_no_other(root)
        return Folders(root, options)
    for name in (TRAINING, *VALIDATION_FOLDERS):
        if any(path.is_dir() for path in (root / name).glob("*")):
            raise TaskError(
                f"{root} holds both parquet shards ({next(iter(shards.values()))[0].name}) and class folders "
                f"({name}); leave one of the two"
            )
    if options.val_labels is not None:
        raise TaskError(
            f"--val-labels: {root} holds parquet shards, whose labels are in the column 'label'"
        )
    return Shards(root, shards, options)
