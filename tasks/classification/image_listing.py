"""ImageNet-1k on disk: which images there are, and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vit_ptq_bench.tasks.errors import TaskError

EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}

VALIDATION_FOLDERS = ("val", "validation")

Sample = tuple[Path, int]


def is_image(path: Path) -> bool:
    """Whether a path looks like an image file."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def validation_folder(root: Path) -> Path:
    """Return the folder with the validation images."""
    for name in VALIDATION_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise TaskError(f"{root} has no folder {' or '.join(VALIDATION_FOLDERS)}")


def class_folders(folder: Path) -> list[Path]:
    """Return the class folders of an ImageFolder; the class index is the rank of the name."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def folder_samples(folder: Path) -> list[Sample]:
    """Return (image, class index) of an ImageFolder, sorted by path.

    Raises:
        TaskError: the folder has no class folders, or these no images.
    """
    classes = class_folders(folder)
    samples = [
        (path, label)
        for label, child in enumerate(classes)
        for path in sorted(child.iterdir())
        if is_image(path)
    ]
    if not samples:
        raise TaskError(f"{folder}: no images found in class folders (<class>/<image>.JPEG)")
    return samples


def flat_samples(folder: Path, labels_file: Path) -> list[Sample]:
    """Return (image, class index) of flat images with a ground-truth file, sorted by path.

    The file has one line per image: ``<file name> <label>`` or, in the order of the sorted file names,
    ``<label>``; labels are class indices from 0 or WordNet ids, then ranked.

    Raises:
        TaskError: unreadable file, a label of another kind, or counts that do not agree.
    """
    images = sorted(path for path in folder.iterdir() if is_image(path))
    if not images:
        raise TaskError(f"{folder}: no images found")
    lines = _label_lines(labels_file)
    if len(lines) != len(images):
        raise TaskError(
            f"{labels_file} labels {len(lines)} images, but {folder} holds {len(images)}"
        )
    if all(len(words) == 1 for words in lines):
        return list(zip(images, _indices([w[0] for w in lines], labels_file), strict=True))
    return _by_name(images, lines, labels_file)


def _label_lines(labels_file: Path) -> list[list[str]]:
    try:
        text = labels_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{labels_file}: cannot read the ground-truth file ({error})") from error
    return [line.split() for line in text.splitlines() if line.strip()]


def _by_name(images: Sequence[Path], lines: list[list[str]], labels_file: Path) -> list[Sample]:
    wrong = next((i for i, words in enumerate(lines, start=1) if len(words) != 2), None)
    if wrong is not None:
        raise TaskError(f"{labels_file}, line {wrong}: expected '<file name> <label>' or '<label>'")
    indices = _indices([label for _, label in lines], labels_file)
    labels = {name: index for (name, _), index in zip(lines, indices, strict=True)}
    missing = [path.name for path in images if path.name not in labels]
    if missing:
        raise TaskError(f"{labels_file} has no label for {', '.join(missing[:3])}")
    return [(path, labels[path.name]) for path in images]


def _indices(labels: Sequence[str], labels_file: Path) -> list[int]:
    if all(label.isdecimal() for label in labels):
        return [int(label) for label in labels]
    if any(label.isdecimal() for label in labels):
        raise TaskError(f"{labels_file} mixes class indices and class names")
    ranks = {name: rank for rank, name in enumerate(sorted(set(labels)))}
    return [ranks[label] for label in labels]


def listing_id(samples: Sequence[Sample], root: Path) -> str:
    """Return a hash over relative paths, file sizes and labels."""
    digest = hashlib.sha256()
    for path, label in samples:
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0{label}\n".encode())
    return f"sha256:{digest.hexdigest()}"
