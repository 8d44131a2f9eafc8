"""The shards of a data set on disk: which files are of which split, and whether one is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vit_ptq_bench.tasks.classification.image_listing import VALIDATION_FOLDERS, is_foreign
from vit_ptq_bench.tasks.errors import TaskError

SUFFIX = ".parquet"

TRAINING = "train"

JUDGED = ("validation", "val", "valid", "test")
"""Splits to judge on, the first that is there."""

FOLDERS = ("", "data")
"""Folders of a data set in which shards, or folders of a split with shards, lie."""

_NAME = re.compile(rf"({'|'.join((TRAINING, *JUDGED))})(?:[-_.].*)?{re.escape(SUFFIX)}")
_NUMBERED = re.compile(r".*?([0-9]{5})-of-([0-9]{5})\b.*")


def find_shards(root: Path, incomplete: bool = False) -> dict[str, list[Path]]:
    """Return split -> its shards, sorted by name; empty where ``root`` holds none.

    Shards are called by their split (``train-00000-of-00014-<hash>.parquet``), in ``root`` or ``root/data``,
    or lie in a folder there that is called by it (``train/0000.parquet``).

    Args:
        root: folder of the data set.
        incomplete: whether some of ``-00000-of-00014`` may be missing.

    Raises:
        TaskError: a folder cannot be read, a split is in two places, or a shard is missing.
    """
    found: dict[str, list[Path]] = {}
    for folder in FOLDERS:
        for split, shards in _shards_in(root / folder).items():
            if split in found:
                raise TaskError(
                    f"{root}: shards of {split} are in {found[split][0].parent} and in "
                    f"{shards[0].parent}; leave one of the two"
                )
            found[split] = shards
    if not incomplete:
        for shards in found.values():
            _require_all(shards)
    return found


def judged_split(found: Mapping[str, list[Path]], root: Path) -> str:
    """Return the name of the split to judge on.

    Raises:
        TaskError: there is none.
    """
    for split in JUDGED:
        if split in found:
            return split
    raise TaskError(
        f"{root} has shards of {', '.join(sorted(found))}, but none to judge on: their names begin with "
        f"{' or '.join(JUDGED)}, or they lie in a folder called so"
    )


def _shards_in(folder: Path) -> dict[str, list[Path]]:
    """The shards that lie in a folder, or in folders of a split in it."""
    found: dict[str, list[Path]] = {}
    for path in _entries(folder):
        if path.name in (TRAINING, *JUDGED) and path.is_dir():
            inside = [one for one in _entries(path) if one.suffix == SUFFIX]
            if inside:
                found.setdefault(path.name, []).extend(inside)
        elif (name := _NAME.fullmatch(path.name)) and path.is_file():
            found.setdefault(name[1], []).append(path)
    return found


def require_no_other(root: Path) -> None:
    """Refuse a folder without images whose shards are called otherwise.

    Raises:
        TaskError: it holds files of parquet, and no folder of images to judge on.
    """
    other = [one for name in FOLDERS for one in _entries(root / name) if one.suffix == SUFFIX]
    if other and not any((root / name).is_dir() for name in VALIDATION_FOLDERS):
        raise TaskError(
            f"{other[0]}: the name of a shard begins with its split, like train-00000-of-00001{SUFFIX} or "
            f"validation-00000-of-00001{SUFFIX}"
        )


def _require_all(shards: list[Path]) -> None:
    """Names say how many shards there are."""
    numbered = [found for path in shards if (found := _NUMBERED.fullmatch(path.name))]
    numbers = {int(found[1]) for found in numbered}
    totals = {int(found[2]) for found in numbered}
    if len(totals) > 1 or (numbered and len(numbered) != len(shards)):
        raise TaskError(
            f"{shards[0].parent}: shards of several versions of a data set lie together "
            f"({shards[0].name}, {shards[-1].name}); leave one of them"
        )
    missing = sorted(set(range(totals.pop())) - numbers) if totals else []
    if missing:
        raise TaskError(
            f"{shards[0].parent}: {len(missing)} of {len(missing) + len(numbers)} shards like "
            f"{shards[0].name} are missing, the first is number {missing[0]}; fetch them, or go on without "
            "them with --incomplete"
        )
    if len(numbered) > len(numbers):
        raise TaskError(f"{shards[0].parent}: two shards have the same number; leave one of them")


def _entries(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    try:
        names = sorted(name for name in os.listdir(folder) if not is_foreign(name))
    except OSError as error:
        raise TaskError(f"{folder}: cannot be read ({error.strerror or error})") from error
    yield from (folder / name for name in names)
