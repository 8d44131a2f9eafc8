"""Images with their labels: from class folders, a flat folder and a ground-truth file, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vit_ptq_bench.tasks.classification.image_listing import (
    Listing,
    Sample,
    list_flat,
    told,
)
from vit_ptq_bench.tasks.classification.label_files import read_ground_truth
from vit_ptq_bench.tasks.classification.label_sets import (
    FOLDER_NAMES,
    INDICES,
    Labels,
    Word,
    form_of,
    imagenet_indices,
    read_class_map,
    read_labels,
)
from vit_ptq_bench.tasks.classification.named_labels import numbered_labels
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import Stored


@dataclass(frozen=True)
class LabelledImages:
    """Images to judge.

    Attributes:
        samples: images and class indices, in the order in which draws count them.
        labels: what the labels say.
        notes: how they were read, a sentence each.
    """

    samples: tuple[Sample, ...]
    labels: Labels
    notes: tuple[str, ...]

    def of_classes(self, number: int | None) -> LabelledImages:
        """Return the images with the number of classes that the user gives; None: as they are.

        Raises:
            TaskError: the labels say that there are more, or fewer.
        """
        if number is None or number == self.labels.classes:
            return self
        if self.labels.classes is not None:
            raise TaskError(
                f"{self.notes[0]}: the labels are of {self.labels.classes} classes, but --num-classes is "
                f"{number}; leave --num-classes out, or name {number} classes in the order of the model's "
                "outputs with --class-map"
            )
        largest = max(self.labels.indices)
        if largest >= number:
            raise TaskError(
                f"{self.notes[0]}: label {largest}, but --num-classes is {number}: labels are 0 to "
                f"{number - 1}"
            )
        note = f"{self.notes[0]} of {number} classes, as --num-classes says"
        return replace(
            self, labels=replace(self.labels, classes=number), notes=(note, *self.notes[1:])
        )

    def require_outputs(self, outputs: int, model: str) -> None:
        """Refuse a model that has other classes than the labels.

        Args:
            outputs: how many outputs the model has.
            model: its name.

        Raises:
            TaskError: the number of classes is another, or too small, or there are none.
        """
        if not outputs:
            raise TaskError(
                f"{model} is a backbone without a classifier: give --checkpoint of one with a head"
            )
        classes, largest = self.labels.classes, max(self.labels.indices)
        if classes is not None and classes != outputs:
            raise TaskError(
                f"{self.notes[0]}: the labels are of {classes} classes, but {model} has {outputs} outputs; "
                "for a model of other classes give its --checkpoint, and --class-map where the order of its "
                "outputs is another"
            )
        if largest == outputs and min(self.labels.indices) > 0:
            raise TaskError(
                f"{self.notes[0]}: label {largest}, but {model} has {outputs} outputs, 0 to {outputs - 1}; "
                "the labels seem to count from 1, an index counts from 0"
            )
        if largest >= outputs:
            raise TaskError(
                f"{self.notes[0]}: label {largest}, but {model} has {outputs} outputs, 0 to {outputs - 1}; "
                "give the --checkpoint of a model that has these classes, or say with --class-map which "
                "labels its outputs are"
            )
        if classes is None:
            self._refuse_fewer_classes(outputs, model)

    def _refuse_fewer_classes(self, outputs: int, model: str) -> None:
        """Indices without a gap, some of them more than once, are all the classes that there are."""
        distinct = sorted(set(self.labels.indices))
        without_gap = distinct == list(range(len(distinct)))
        if without_gap and 1 < len(distinct) < min(outputs, len(self.labels.indices)):
            raise TaskError(
                f"{self.notes[0]}: labels 0 to {distinct[-1]}, as of {len(distinct)} classes, but {model} "
                f"has {outputs} outputs; if the labels are outputs of this model, give its number of outputs "
                "with --num-classes, or name them with --class-map"
            )


def from_folders(
    listing: Listing,
    class_map: Path | None = None,
    incomplete: bool = False,
    trained: Sequence[str] = (),
) -> LabelledImages:
    """Return images labelled by the names of their class folders.

    Args:
        listing: of a folder with class folders.
        class_map: the user's class names.
        incomplete: whether more than a few images may be left out.
        trained: names of the class folders of the training images, whose sorted order is that of the outputs
            where names say nothing else; empty: there are none.

    Raises:
        TaskError: names that are no labels, or of several forms, or too much left out.
    """
    if class_map is None and not any(form_of(name, None) for name in listing.classes):
        labels = _by_name(listing, trained or listing.classes)
    else:
        words = [Word(name, str(listing.folder / name)) for name in listing.classes]
        labels = read_labels(words, _read(class_map))
    if labels.form == INDICES:
        labels = _whole(labels, listing)
    index = dict(zip(listing.classes, labels.indices, strict=True))
    samples = tuple((path, index[path.parent.name]) for path in listing.images)
    note = (
        f"{len(samples)} images in {listing.folder.name}: {len(index)} class folders, {labels.form}"
    )
    notes = (note, *told(listing.losses(), incomplete))
    return LabelledImages(samples, labels, notes)


def from_file(
    folder: Path, file: Path, class_map: Path | None = None, incomplete: bool = False
) -> LabelledImages:
    """Return flat images labelled by a ground-truth file, see `read_ground_truth`.

    Raises:
        TaskError: what `read_ground_truth` raises, or too much left out.
    """
    listing = list_flat(folder, file)
    truth = read_ground_truth(file, listing, _read(class_map))
    note = f"{len(truth.samples)} images in {folder.name}: {truth.note}"
    notes = (note, *told([listing.losses()[0], *truth.losses], incomplete))
    return LabelledImages(truth.samples, truth.labels, notes)


def from_numbers(
    images: Sequence[Stored],
    numbers: Sequence[int],
    classes: Sequence[str] | None,
    what: str,
    class_map: Path | None = None,
) -> LabelledImages:
    """Return the images of a data set that labels them by numbers, see `numbered_labels`.

    Args:
        images: in the order in which draws count them.
        numbers: of each, its label.
        classes: their names; None: not known.
        what: the part of the data set, for people.
        class_map: the user's class names.

    Raises:
        TaskError: a number that is no label.
    """
    labels = numbered_labels(numbers, classes, lambda i: str(images[i]), _read(class_map))
    note = f"{len(images)} images in {what}: {labels.form}"
    return LabelledImages(tuple(zip(images, labels.indices, strict=True)), labels, (note,))


def _read(class_map: Path | None) -> Mapping[str, int] | None:
    return None if class_map is None else read_class_map(class_map)


def _by_name(listing: Listing, trained: Sequence[str]) -> Labels:
    """Names in sorted order, as torchvision's ``ImageFolder`` and timm number the folders of a training set.

    Raises:
        TaskError: a class that was not trained, or as many as ImageNet-1k has, whose outputs are not in the
            order of their English names.
    """
    if len(trained) == len(imagenet_indices()):
        raise TaskError(
            f"{listing.folder / listing.classes[0]}: the folders are called neither by WordNet ids nor by "
            f"indices, and there are {len(trained)}, as of ImageNet-1k, whose outputs are in the order of "
            "the WordNet ids: name the classes in the order of the outputs with --class-map"
        )
    order = {name: i for i, name in enumerate(sorted(trained))}
    for name in listing.classes:
        if name not in order:
            raise TaskError(
                f"{listing.folder / name}: there is no such folder of training images, whose sorted names "
                f"are the classes ({len(order)}, the first is {min(order)!r}); name the classes with "
                "--class-map where the order is another"
            )
    return Labels(tuple(order[name] for name in listing.classes), FOLDER_NAMES, len(order))


def _whole(labels: Labels, listing: Listing) -> Labels:
    """Folders that are numbered have to be all classes: nothing else tells how many there are."""
    if len(set(labels.indices)) < len(labels.indices):
        raise TaskError(f"{listing.folder}: two class folders have the same number")
    if labels.classes is not None:
        return labels
    missing = sorted(set(range(len(labels.indices))) - set(labels.indices))
    if missing:
        raise TaskError(
            f"{listing.folder}: {len(labels.indices)} class folders with numbers, but none is called "
            f"{missing[0]}; numbers count from 0 without a gap, or name the classes with --class-map"
        )
    return Labels(labels.indices, labels.form, len(labels.indices))
