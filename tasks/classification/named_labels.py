"""Labels that are numbers, in a data set that may name its classes, like parquet shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vit_ptq_bench.tasks.classification.label_sets import (
    CLASS_NAMES,
    Labels,
    Word,
    imagenet_indices,
    read_labels,
)
from vit_ptq_bench.tasks.errors import TaskError


def numbered_labels(
    numbers: Sequence[int],
    classes: Sequence[str] | None,
    place: Callable[[int], str],
    class_map: Mapping[str, int] | None,
) -> Labels:
    """Return the outputs that numbers mean.

    A number is the output itself, of as many as there are names. Names are looked up where a class map is
    given, or where all are WordNet ids of ImageNet-1k, as those of class folders are.

    Args:
        numbers: of each image, at least one.
        classes: their names in the order of the numbers; None: not known.
        place: where the number of an image stands, for errors.
        class_map: the user's class names.

    Raises:
        TaskError: a number that no class has, or what `read_labels` refuses.
    """
    for i, number in enumerate(numbers):
        if number < 0 or (classes is not None and number >= len(classes)):
            there = f", but there are {len(classes)} classes" if classes is not None else ""
            unlabelled = "; -1 stands for an image without a label" if number == -1 else ""
            raise TaskError(f"{place(i)}: the label is {number}{there}{unlabelled}")
    if classes is None:
        words = [Word(str(number), place(i)) for i, number in enumerate(numbers)]
        return read_labels(words, class_map)
    if class_map is None and not imagenet_indices().keys() >= set(classes):
        return Labels(tuple(numbers), f"{len(classes)} named classes", len(classes))
    words = [Word(classes[number], place(i)) for i, number in enumerate(numbers)]
    labels = read_labels(words, class_map)
    if len(set(classes)) < len(classes):
        raise TaskError(
            f"{place(0)}: two classes have the same name, which {CLASS_NAMES} cannot tell apart"
        )
    return labels
