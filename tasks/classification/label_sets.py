"""Labels: an index, a WordNet id of ImageNet-1k, or a class name of a map that the user gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vit_ptq_bench.tasks.classification.text_files import read_lines
from vit_ptq_bench.tasks.errors import TaskError

IMAGENET_FILE = Path(__file__).with_name("imagenet_1k.txt")
"""WordNet ids in the order of the outputs of ImageNet-1k's models: ``tasks/training/imagenet_classes.py``."""

INDICES, WORDNET_IDS, CLASS_NAMES = "indices from 0", "WordNet ids", "class names"

FOLDER_NAMES = "names in sorted order"

SEVERAL = 10
"""So many labels that are 1, 2, 3 ... without a gap, and no 0, were counted from 1."""

_INDEX = re.compile(r"[0-9]{1,9}")
_WORDNET_ID = re.compile(r"n[0-9]{8}")


@dataclass(frozen=True)
class Word:
    """A label as it is written.

    Attributes:
        text: the label.
        place: where it stands, for the error: file and line, or a folder.
    """

    text: str
    place: str


@dataclass(frozen=True)
class Labels:
    """What labels say.

    Attributes:
        indices: output of the model that each label means, in the order of the labels.
        form: what the labels are, for people.
        classes: number of outputs that a model of these labels has; None: not known.
    """

    indices: tuple[int, ...]
    form: str
    classes: int | None


@cache
def imagenet_indices() -> Mapping[str, int]:
    """Return ImageNet-1k's WordNet ids with the outputs that they are."""
    return {name: i for i, name in enumerate(IMAGENET_FILE.read_text("ascii").split())}


def read_class_map(path: Path) -> dict[str, int]:
    """Return class names with the outputs that they are: one name a line, in the order of the outputs.

    Of a line that begins with a WordNet id (``n01440764 tench, Tinca tinca``) the id is the name.

    Raises:
        TaskError: no such file, no text, no name in a line, or a name twice.
    """
    lines = read_lines(path, "class map")
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise TaskError(f"{path}: the class map is empty; it has one class name a line")
    names: dict[str, int] = {}
    for i, line in enumerate(lines):
        first = line.split()[0] if line else ""
        name = first if _WORDNET_ID.fullmatch(first) else line
        if not name or name in names:
            fault = f"{name!r} stands in line {names[name] + 1} too" if name else "there is no name"
            raise TaskError(
                f"{path}, line {i + 1}: {fault}; the class map has one class name a line, in the "
                "order of the model's outputs"
            )
        names[name] = i
    return names


def form_of(text: str, class_map: Mapping[str, int] | None) -> str | None:
    """Return the form of a label; None: it has none of the three."""
    if class_map is not None and text in class_map:
        return CLASS_NAMES
    if _INDEX.fullmatch(text):
        return INDICES
    return WORDNET_IDS if _WORDNET_ID.fullmatch(text) else None


def read_labels(words: Sequence[Word], class_map: Mapping[str, int] | None) -> Labels:
    """Return what labels mean; all of them have one form.

    Args:
        words: the labels, at least one.
        class_map: the user's class names.

    Raises:
        TaskError: a label of no form or of another than the first one's, one that is not in its set, or
            labels that were counted from 1; with its place.
    """
    form = _common_form(words, class_map)
    if form == INDICES:
        indices = [int(word.text) for word in words]
        _refuse_counted_from_one(indices, words[0].place)
        if class_map is not None:
            _refuse_too_large(indices, words, len(class_map))
        return Labels(tuple(indices), form, len(class_map) if class_map else None)
    known = class_map if class_map is not None else imagenet_indices()
    return Labels(tuple(_known(words, known, class_map is not None)), form, len(known))


def _common_form(words: Sequence[Word], class_map: Mapping[str, int] | None) -> str:
    first: str | None = None
    for word in words:
        form = form_of(word.text, class_map)
        if form is None:
            raise TaskError(
                f"{word.place}: the label {word.text[:60]!r} is neither an index nor a WordNet id"
                + (
                    "; where labels are class names, give --class-map"
                    if class_map is None
                    else " nor a name of the class map"
                )
            )
        first = first or form
        if form != first:
            fault = f"mixes {form} with {first} before it"
            if first == CLASS_NAMES:
                fault = "is no name of the class map, as those before it are"
            raise TaskError(f"{word.place}: the label {word.text[:60]!r} {fault}")
    assert first is not None
    return first


def _known(words: Sequence[Word], known: Mapping[str, int], mapped: bool) -> Iterator[int]:
    for word in words:
        if word.text not in known:
            whose = "the class map" if mapped else "ImageNet-1k"
            raise TaskError(
                f"{word.place}: the WordNet id {word.text} is none of the {len(known)} of {whose}"
                + ("" if mapped else "; for a model of other classes give --class-map")
            )
        yield known[word.text]


def _refuse_counted_from_one(indices: Sequence[int], place: str) -> None:
    """Such labels are those of another list; the devkit's are not even in the order of the WordNet ids."""
    distinct = sorted(set(indices))
    if len(distinct) >= SEVERAL and distinct == list(range(1, len(distinct) + 1)):
        raise TaskError(
            f"{place}: the labels are 1 to {len(distinct)}, counted from 1; an index counts from 0, in the "
            "order of the model's outputs (the ids of ImageNet's devkit have an order of their own): "
            "give WordNet ids, or with --class-map the names 1, 2, ... in the order of the outputs"
        )


def _refuse_too_large(indices: Sequence[int], words: Sequence[Word], classes: int) -> None:
    for index, word in zip(indices, words, strict=True):
        if index >= classes:
            raise TaskError(
                f"{word.place}: label {index}, but the class map has {classes} classes, 0 to {classes - 1}"
            )
