"""Calibration on the images of any folder: another domain than the training data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vit_ptq_bench.tasks.api.selection import drawn
from vit_ptq_bench.tasks.api.task import LoadedModel, Task
from vit_ptq_bench.tasks.classification.contents import Contents, contents_id
from vit_ptq_bench.tasks.classification.decoding import decoded
from vit_ptq_bench.tasks.classification.image_listing import Listing, list_below, told
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import read_content

if TYPE_CHECKING:
    from torch import Tensor


class FolderCalibration(Task):
    """The part of a task that calibrates on the images of ``options.calibration_dir``.

    All images in it and below it count, whatever they show; nothing of them but the pixels is used.
    """

    @abstractmethod
    def read_images(
        self, loaded: LoadedModel, paths: Sequence[Path], contents: Sequence[str]
    ) -> list[Tensor]:
        """Return images preprocessed for a model, float32 batches [b, 3, H, W].

        Args:
            loaded: the model.
            paths: of the images.
            contents: SHA-256 of each file; an image that holds other bytes is refused.

        Raises:
            TaskError: one cannot be read.
        """

    def folder_id(self) -> str:
        """Return a hash over the contents of all images of the folder, in the order of their paths."""
        return contents_id(self._folder_contents.of(self._other_images.images))

    def check_folder(self, n: int, seed: int) -> tuple[str, ...]:
        """Decode the images that calibration will draw, and return what was left out of the folder."""
        listing = self._other_images
        paths = self._drawn_of_folder(n, seed)
        for path, content in zip(paths, self._folder_contents.of(paths), strict=True):
            decoded(path, read_content(path, content))
        return tuple(told(listing.losses()[:1], self.options.incomplete))

    def folder_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` images of the folder without replacement."""
        paths = self._drawn_of_folder(n, seed)
        return self.read_images(loaded, paths, self._folder_contents.of(paths))

    def _drawn_of_folder(self, n: int, seed: int) -> list[Path]:
        listing = self._other_images
        return [listing.images[i] for i in drawn(len(listing.images), n, seed, str(listing.folder))]

    @cached_property
    def _folder_contents(self) -> Contents:
        """Hashes of the folder's images, each as it was when this task first asked."""
        return Contents()

    @cached_property
    def _other_images(self) -> Listing:
        folder = self.options.calibration_dir
        if folder is None:
            raise TaskError(
                f"calibration on a folder needs the folder: give --calibration-dir, set "
                f"BENCH_{self.name.upper().replace('-', '_')}_CALIBRATION_DIR, or write calibration_dir "
                f"under [tasks.{self.name}] in bench.toml"
            )
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder of calibration images")
        return list_below(folder)
