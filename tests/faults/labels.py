"""Mutated ground truth of classification: label files of a flat folder, and class folders.

Each image's colour tells which one it is, so a classifier that knows the labels (from the very file, by a
reader of its own) has to reach top-1 100.
"""

from __future__ import annotations

import codecs
import os
import random
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image

from tests.faults.mutations import mutate_file
from tests.faults.trials import Kind, Outcome, faulty

IMAGES = 12

STEP = 20
"""Difference in colour between two images."""

CLASSES = 1000

NAMES = tuple(f"ILSVRC2012_val_{i:08d}" for i in range(1, IMAGES + 1))

LABELS = (3, 1, 999, 0, 7, 7, 500, 42, 99, 100, 101, 2)

SUFFIX = ".png"

INDEX = re.compile("[0-9]{1,9}")


@cache
def wordnet_ids() -> list[str]:
    """ImageNet-1k's ids in the order of its models' outputs: the alphabet's."""
    import timm.data

    ids = list(timm.data.ImageNetInfo().label_names())
    assert ids == sorted(ids) and len(ids) == CLASSES
    return ids


def label_texts() -> list[str]:
    """The same labels in forms that people have."""
    ids = wordnet_ids()
    rows = list(zip(NAMES, LABELS, strict=True))
    return [
        "".join(f"{name}{SUFFIX} {label}\n" for name, label in rows),
        "".join(f"{label}\n" for _, label in rows),
        "".join(f"{name}{SUFFIX}\t{ids[label]}\n" for name, label in reversed(rows)),
        "filename,label\n" + "".join(f"{name}{SUFFIX},{label}\n" for name, label in rows),
        "# labels\n" + "".join(f"val/{name}{SUFFIX} {ids[label]}\n" for name, label in rows),
        "ImageId,label\r\n" + "".join(f"{name},{ids[label]}\r\n" for name, label in rows),
    ]


@dataclass(frozen=True)
class Labelled:
    """Flat images with label files, and the same images in class folders.

    Attributes:
        root: data folder of the flat images.
        folders: data folder with class folders.
        texts: label files to mutate.
        loaded: a classifier in name only: its transform leaves colours as they are.
    """

    root: Path
    folders: Path
    texts: list[str]
    loaded: Any


def prepare(folder: Path) -> Labelled:
    """The images, and the proof that every unmutated file gives top-1 100."""
    torch.set_num_threads(1)
    root = folder / "flat"
    (root / "val").mkdir(parents=True)
    (root / "train" / wordnet_ids()[0]).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        write_image(root / "val" / f"{name}{SUFFIX}", index)
    write_image(root / "train" / wordnet_ids()[0] / "t.png", 0)
    data = Labelled(root, folder / "folders", label_texts(), _named_classifier())
    for text in data.texts:
        (root / "labels.txt").write_text(text)
        outcome = judge(
            data, root, expected_of_file(text.encode()), "nothing", val_labels="labels.txt"
        )
        assert outcome.verdict == "right", f"{text[:60]!r}: {outcome.text}"
    return data


def write_image(path: Path, index: int) -> None:
    Image.new("RGB", (8, 8), (STEP * index,) * 3).save(path)


def _named_classifier() -> Any:
    """A module that timm's transforms are made for."""
    from vit_ptq_bench.tasks.api.task import LoadedModel

    module = torch.nn.Identity()
    module.num_classes = CLASSES
    module.pretrained_cfg = {
        "input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0,
        "interpolation": "nearest", "num_classes": CLASSES,
    }  # fmt: skip
    return LoadedModel("knows the labels", module)


def trial(data: Labelled, number: int, rng: random.Random) -> Outcome:
    """Two of three mutate a label file, the third a tree of class folders."""
    if number % 3 == 2:
        return _trial_folders(data, rng)
    content, fault = mutate_file(rng.choice(data.texts), rng)
    (data.root / "labels.txt").write_bytes(content)
    with faulty(fault):
        expected = expected_of_file(content)
        return judge(data, data.root, expected, fault, val_labels="labels.txt")


def judge(
    data: Labelled,
    root: Path,
    expected: dict[str, int] | None,
    fault: str,
    val_labels: str | None = None,
) -> Outcome:
    """Read the labels as a run does, and evaluate the classifier that knows them.

    Args:
        data: the classifier.
        root: of the images.
        expected: label of each image by its stem; None: nothing tells the labels.
        fault: in words.
        val_labels: the label file.
    """
    from vit_ptq_bench.tasks.api.options import TaskOptions
    from vit_ptq_bench.tasks.api.registry import TASKS

    labels = root / val_labels if val_labels else None
    task = TASKS.get("imagenet")(TaskOptions(data_dir=root, val_labels=labels))
    task.data_id()
    known = _Knowing(expected or {})
    evaluation = task.evaluate(known, data.loaded, torch.device("cpu"))
    if expected is None:
        return Outcome(
            "silent",
            f"{fault}: nothing tells the labels, and top-1 is {evaluation.metrics['top1']:.2f}",
        )
    if evaluation.metrics["top1"] != 100:
        return Outcome("silent", f"{fault}: top-1 is {evaluation.metrics['top1']:.2f}, not 100")
    if evaluation.n != len(expected):
        return Outcome("silent", f"{fault}: {evaluation.n} images are judged, not {len(expected)}")
    if evaluation.n < IMAGES and not any("left out" in note for note in task.data_notes()):
        return Outcome("silent", f"{fault}: {evaluation.n} of {IMAGES} images are judged")
    return Outcome("right", fault)


class _Knowing(torch.nn.Module):
    """Answers the label of the image that it sees.

    Args:
        labels: by the image's stem.
    """

    def __init__(self, labels: dict[str, int]) -> None:
        super().__init__()
        self.labels = [labels.get(name, 0) for name in NAMES]

    def forward(self, images: Any) -> Any:
        which = (images[:, 0, 4, 4] * 255 / STEP).round().long().tolist()
        labels = torch.tensor([self.labels[index] for index in which])
        return torch.nn.functional.one_hot(labels, CLASSES).float()


def expected_of_file(content: bytes) -> dict[str, int] | None:
    """Label of each image by its stem, by the documented rules; None where they do not tell it."""
    rows = _rows(content)
    if not rows or len({len(row) for row in rows[1:]} | {len(rows[-1])}) != 1:
        return None
    if _label([rows[0][-1]]) is None and not any(c.isdigit() for c in rows[0][-1]):
        rows = rows[1:]  # a header
    labels = _label([row[-1] for row in rows])
    if labels is None or len({len(row) for row in rows}) != 1:
        return None
    if len(rows[0]) == 1:
        return dict(zip(NAMES, labels, strict=True)) if len(rows) == IMAGES else None
    found: dict[str, int] = {}
    for row, label in zip(rows, labels, strict=True):
        stem = _stem(row[0])
        if stem in NAMES and found.setdefault(stem, label) != label:
            return None
    return found or None


def _rows(content: bytes) -> list[list[str]] | None:
    """Cells of the lines that are neither blank nor comments."""
    text = _decoded(content)
    if text is None or "\0" in text:
        return None
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    lines = [
        re.sub(r"\s#.*", "", line).strip() for line in lines if line and not line.startswith("#")
    ]
    # The first line tells what separates: a later comma may be part of a name.
    separator = next((mark for mark in "\t,;" if lines and mark in lines[0]), None)
    rows = [
        [cell.strip(" \"'") for cell in line.rstrip(",;\t ").split(separator)] for line in lines
    ]
    return None if any(len(row) > 2 or not all(row) for row in rows) else rows


def _decoded(content: bytes) -> str | None:
    marks = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = next((name for mark, name in zip(marks, ("utf-32", "utf-32", "utf-16", "utf-16"), strict=True)
                     if content.startswith(mark)), "utf-8-sig")  # fmt: skip
    if encoding == "utf-8-sig" and content[1::2] and not any(content[1::2]):
        encoding = "utf-16-le"  # ASCII without a mark
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _label(words: Sequence[str]) -> list[int] | None:
    """What labels of one form mean."""
    if not words:
        return None
    if all(INDEX.fullmatch(word) for word in words):
        indices = [int(word) for word in words]
        return indices if max(indices) < CLASSES else None
    ids = wordnet_ids()
    return [ids.index(word) for word in words] if all(word in ids for word in words) else None


def _stem(name: str) -> str:
    base = PurePosixPath(name.replace("\\", "/")).name
    return re.sub(r"(?i)\.(png|jpe?g|bmp|webp|gif|tiff?)$", "", base)


# Class folders


def _trial_folders(data: Labelled, rng: random.Random) -> Outcome:
    """A tree of class folders, one for each of the classes, and a few things that happen to trees."""
    by_id = rng.random() < 0.5
    names = wordnet_ids() if by_id else [str(i) for i in range(CLASSES)]
    root = data.folders / ("ids" if by_id else "indices")
    _mend(root, names)
    expected: dict[str, int] | None = dict(zip(NAMES, LABELS, strict=True))
    faults = []
    for _ in range(rng.choice((1, 1, 2))):
        expected, what = _damage(root / "val", names, expected, rng)
        faults.append(what)
    fault = f"class folders ({root.name}): {'; '.join(faults)}"
    with faulty(fault):
        return judge(data, root, expected, fault)


def _mend(root: Path, names: Sequence[str]) -> None:
    """Make the tree, or make it whole again: a new one takes seconds."""
    if not root.is_dir():
        (root / "train" / names[0]).mkdir(parents=True)
        write_image(root / "train" / names[0] / "t.png", 0)
        for name in names:
            (root / "val" / name).mkdir(parents=True)
    _remove_others(root / "val", set(names))
    for index, (name, label) in enumerate(zip(NAMES, LABELS, strict=True)):
        home = root / "val" / names[label]
        home.mkdir(exist_ok=True)
        own = {f"{n}{SUFFIX}" for n, other in zip(NAMES, LABELS, strict=True) if other == label}
        _remove_others(home, own)
        (home / f"{name}{SUFFIX}").unlink(missing_ok=True)
        write_image(home / f"{name}{SUFFIX}", index)


def _remove_others(folder: Path, names: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGES = (
    *("foreign", "foreign", "rename", "dangling", "suffix", "deep", "beside", "hidden", "broken"),
)


def _damage(
    folder: Path, names: Sequence[str], expected: dict[str, int] | None, rng: random.Random
) -> tuple[dict[str, int] | None, str]:
    """Do something to the tree; the labels afterwards, and what it was."""
    number = rng.randrange(IMAGES)
    home = folder / names[LABELS[number]]
    image = home / f"{NAMES[number]}{SUFFIX}"
    if not image.is_file():
        return expected, "nothing more"
    kind = rng.choice(DAMAGES)
    less = None if expected is None else {k: v for k, v in expected.items() if k != NAMES[number]}
    if kind == "foreign":
        name = rng.choice(
            (".ipynb_checkpoints", "__MACOSX", ".git", ".DS_Store", "Thumbs.db", "._x.png")
        )
        (folder / name).mkdir(exist_ok=True)
        write_image(folder / name / "x.png", 5)
        return expected, f"a folder {name}"
    if kind == "hidden":
        (home / "._x.png").write_bytes(b"\0\5\x16\7")
        return expected, "a hidden file that is called an image"
    if kind == "rename":
        new = rng.choice(("n99999999", "dog", "0x1", "٣", "-1", "1000", "007", " ", names[5] + "x"))
        if (folder / new).exists():
            return expected, "nothing more"
        home.rename(folder / new)
        return None, f"class folder {home.name} called {new!r}"
    if kind == "dangling":
        image.unlink()
        os.symlink("nowhere", image)
        return less, "a dangling link"
    if kind == "suffix":
        image.rename(image.with_suffix(rng.choice((".JPEGx", ".txt", ".part", ""))))
        return less, "a suffix of no image"
    if kind == "deep":
        (home / "more").mkdir()
        image.rename(home / "more" / image.name)
        return less, "one folder too deep"
    if kind == "beside":
        image.rename(folder / image.name)
        return less, "beside the class folders"
    content = image.read_bytes()
    image.write_bytes(content[: rng.randrange(len(content) - 20)])
    return None, "a truncated image"


KINDS = [
    Kind("labels", "mutated label files and class folders of classification", 1000, prepare, trial)
]
