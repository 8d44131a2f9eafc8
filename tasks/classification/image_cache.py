"""Decoded images that the runs of a sweep share, so that each file is decoded once per preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vit_ptq_bench.tasks.api.cache import TensorCache, content_key
from vit_ptq_bench.tasks.classification.image_files import ImageFiles
from vit_ptq_bench.tasks.classification.image_listing import Sample
from vit_ptq_bench.tasks.classification.normalisation import normalise
from vit_ptq_bench.tasks.errors import TaskError


class CachedImages:
    """Batches of images and labels, decoded unless an earlier run has left them.

    Args:
        files: images and their transform.
        batch_size: images per batch.
        loader_workers: processes that decode; 0 decodes here.
        config: the preprocessing, ``mean`` and ``std`` among it; part of the key.
        cache: where decoded batches lie; None decodes always.
        pinned: whether the batches that are decoded lie in pinned memory, see `transfer.wants_pinned`.

    Images are kept as the bytes they were before normalisation wherever normalising those again gives the
    same floats to the bit (else as floats): a quarter of the room.
    """

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        loader_workers: int,
        config: Mapping[str, Any],
        cache: TensorCache | None,
        pinned: bool = False,
    ) -> None:
        self._files, self._size, self._workers = files, batch_size, loader_workers
        self._pinned = pinned
        self._config, self._cache = config, cache
        self._mean = torch.tensor(config["mean"]).view(-1, 1, 1)
        self._std = torch.tensor(config["std"]).view(-1, 1, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 [b, 3, H, W] and labels int64 [b]."""
        missing = [p for p in self._positions() if not self._is_kept(p)]
        decoded = self._decoded(missing)
        due = set(missing)
        for position in self._positions():
            found = None if position in due else self._find(position)
            if position in due:
                yield next(decoded)
            elif found is None:  # removed since the first look
                yield from self._decoded([position])
            else:
                yield found, self._labels(position)

    def _positions(self) -> range:
        return range(0, len(self._files), self._size)

    def _decoded(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the files, left for later runs."""
        batches = [list(range(p, min(p + self._size, len(self._files)))) for p in positions]
        loader = DataLoader(
            self._files, batch_sampler=batches, num_workers=self._workers, pin_memory=self._pinned
        )
        try:
            for position, (images, labels) in zip(positions, loader, strict=True):
                if self._cache is not None:
                    self._cache.put(self._key(position), self._encode(images))
                yield images, labels
        except TaskError as error:
            # A loader's process sends its traceback in the text of an error, what is wrong comes last.
            raise TaskError(str(error).rsplit("TaskError: ", 1)[-1].strip()) from error

    def _is_kept(self, position: int) -> bool:
        return self._cache is not None and self._key(position) in self._cache

    def _find(self, position: int) -> Tensor | None:
        found = None if self._cache is None else self._cache.get(self._key(position))
        if found is None:
            return None
        return self._normalised(found["bytes"]) if "bytes" in found else found["floats"]

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        pixels = images.mul(self._std).add_(self._mean).mul_(255).round_().clamp_(0, 255)
        pixels = pixels.to(torch.uint8)
        if torch.equal(self._normalised(pixels), images):
            return {"bytes": pixels}
        return {"floats": images}

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self._mean, self._std)

    def _samples(self, position: int) -> Sequence[Sample]:
        return self._files.samples[position : position + self._size]

    def _labels(self, position: int) -> Tensor:
        return torch.tensor([label for _, label in self._samples(position)])

    def _key(self, position: int) -> str:
        contents = self._files.contents[position : position + self._size]
        return content_key(sorted(self._config.items()), contents)
