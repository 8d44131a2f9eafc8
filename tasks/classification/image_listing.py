"""Image files on disk: which there are, which are left out, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import Stored

EXTENSIONS = {
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
}
"""Those that timm's and torchvision's image folders read, and a few more names of the same formats."""

VALIDATION_FOLDERS = ("val", "validation")

FOREIGN = {
    *("__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("$recycle.bin", "system volume information", "lost+found", "@eadir"),
}
"""Lower-case names of what file managers, archivers and file systems leave behind, beside hidden files."""

FEW = 0.01
"""Share of files that may be missing without being asked about; one may always be."""

DANGLING = "dangling links"
UNKNOWN = "with a suffix of no image format"
DEEP = "a folder too deep"
BESIDE = "beside the class folders"
IRREGULAR = "no regular files"

Sample = tuple[Stored, int]
"""An image and its class index."""


def in_stored_order(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples as they lie in files, where several do: to find a row, those before it are read.

    Images with a file each keep their order, which is that of their paths.
    """
    return sorted(samples, key=_stored) if samples and _stored(samples[0]) else list(samples)


def _stored(sample: Sample) -> tuple[Path, int] | tuple[()]:
    """Where a sample lies in a file with others; nothing for a file of its own."""
    image, _ = sample
    return () if isinstance(image, Path) else (image.file, image.number)


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        folder: the folder.
        images: sorted by path.
        classes: names of the class folders, sorted; empty where images lie flat.
        empty: those that hold no image.
        left_out: reason -> files of that kind that cannot be judged.
    """

    folder: Path
    images: tuple[Path, ...]
    classes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def losses(self) -> list[Loss]:
        """Return what is missing: files, and class folders without images."""
        missing = sum(len(paths) for paths in self.left_out.values())
        kinds = {
            reason: [str(path.relative_to(self.folder)) for path in paths]
            for reason, paths in self.left_out.items()
        }
        files = Loss(f"files in {self.folder.name}", len(self.images) + missing, kinds)
        empty = {"without an image": list(self.empty)} if self.empty else {}
        return [files, Loss(f"class folders in {self.folder.name}", len(self.classes), empty)]


@dataclass(frozen=True)
class Loss:
    """Things that are left out.

    Attributes:
        things: what they are, and where.
        total: how many there are, those left out among them.
        kinds: reason -> names of those left out.
    """

    things: str
    total: int
    kinds: dict[str, list[str]]

    @property
    def count(self) -> int:
        """How many are left out."""
        return sum(len(names) for names in self.kinds.values())

    def __str__(self) -> str:
        reasons = [
            f"{len(names)} {kind} ({printable(names[0])})" for kind, names in self.kinds.items()
        ]
        return f"{self.count} of {self.total} {self.things} left out: {', '.join(reasons)}"


def told(losses: Sequence[Loss], accepted: bool) -> list[str]:
    """Return a sentence for everything that is left out.

    Args:
        losses: what is left out.
        accepted: whether the user has asked to go on without.

    Raises:
        TaskError: it is more than a few, and not accepted.
    """
    for loss in losses:
        if loss.count > max(1, int(FEW * loss.total)) and not accepted:
            raise TaskError(f"{loss}; put them right, or go on without them with --incomplete")
    return [str(loss) for loss in losses if loss.count]


def printable(name: str) -> str:
    """Return a name without what no encoding can print (bytes of another encoding in a file name)."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_image(path: Path) -> bool:
    """Whether a path looks like an image file."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def is_foreign(name: str) -> bool:
    """Whether a file or folder of that name belongs to no data set: hidden, or left behind by a program."""
    return name.startswith(".") or name.lower() in FOREIGN


def validation_folder(root: Path) -> Path:
    """Return the folder with the validation images."""
    for name in VALIDATION_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise TaskError(f"{root} has no folder {' or '.join(VALIDATION_FOLDERS)}")


def list_classes(folder: Path) -> Listing:
    """Return the images in the class folders of ``folder``.

    Raises:
        TaskError: it has no class folders, or these no images, or one cannot be read.
    """
    images: list[Path] = []
    classes, empty = [], []
    left_out: dict[str, list[Path]] = {}
    for entry in _entries(folder):
        if not _is_folder(entry):
            left_out.setdefault(_fault(entry) or BESIDE, []).append(Path(entry.path))
            continue
        classes.append(entry.name)
        found = _images_in(Path(entry.path), left_out)
        images += found
        if not found:
            empty.append(entry.name)
    if not classes:
        raise TaskError(
            f"{folder} has no class folders (<class>/<image>.JPEG); if its images are flat, give their "
            "labels with --val-labels (one line per image: '<file name> <label>')"
        )
    listing = Listing(folder, tuple(images), tuple(classes), tuple(empty), left_out)
    if not images:
        raise _nothing(listing, "images found in class folders (<class>/<image>.JPEG)")
    return listing


def list_flat(folder: Path, but: Path) -> Listing:
    """Return the images that lie in ``folder`` itself; ``but`` is no image, and may lie among them.

    Raises:
        TaskError: there are none, or the folder cannot be read.
    """
    left_out: dict[str, list[Path]] = {}
    images = _images_in(folder, left_out, but)
    listing = Listing(folder, tuple(images), left_out=left_out)
    if not images:
        raise _nothing(listing, "images found")
    return listing


def list_below(folder: Path) -> Listing:
    """Return the images in ``folder`` and all folders below it, sorted by path, whatever they show.

    Raises:
        TaskError: there are none, or the folder cannot be read.
    """
    _entries(folder)  # walking says nothing of a folder that cannot be read
    left_out: dict[str, list[Path]] = {}
    images = []
    for path in sorted(_files_below(folder)):
        fault = _fault_of(path)
        if fault is None:
            images.append(path)
        else:
            left_out.setdefault(fault, []).append(path)
    listing = Listing(folder, tuple(images), left_out=left_out)
    if not images:
        raise _nothing(listing, "images found")
    return listing


def _nothing(listing: Listing, what: str) -> TaskError:
    files = listing.losses()[0]
    return TaskError(f"{listing.folder}: no {what}" + (f"; {files}" if files.count else ""))


def _images_in(
    folder: Path, left_out: dict[str, list[Path]], but: Path | None = None
) -> list[Path]:
    """Images that lie in ``folder`` itself, sorted; all others are added to ``left_out``."""
    images = []
    for entry in _entries(folder):
        path = Path(entry.path)
        if _is_folder(entry):
            if below := list(_files_below(path)):
                left_out.setdefault(DEEP, []).extend(below)
        elif fault := _fault(entry):
            if but is None or not but.exists() or not path.exists() or not path.samefile(but):
                left_out.setdefault(fault, []).append(path)
        else:
            images.append(path)
    return images


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads in a circle is none."""
    if entry.is_symlink():
        return os.path.isdir(entry.path)
    return entry.is_dir()


def _fault(entry: os.DirEntry[str]) -> str | None:
    """Why a file cannot be an image."""
    return _fault_of(Path(entry.path))


def _fault_of(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        return DANGLING
    if not path.is_file():
        return IRREGULAR
    return None if path.suffix.lower() in EXTENSIONS else UNKNOWN


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_foreign(name))
        yield from (Path(parent) / name for name in sorted(files) if not is_foreign(name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Files and folders of a folder, sorted by name, without what belongs to no data set."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_foreign(entry.name)]
    except OSError as error:
        raise TaskError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return sorted(found, key=lambda entry: entry.name)
