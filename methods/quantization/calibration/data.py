"""The calibration set of a run, and the report of progress through it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.cache import TensorCache


class CalibrationProgress(Protocol):
    """Is told how far a calibration is."""

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        """``done`` of ``total`` steps are finished; ``stage`` names the part under way, if any."""


class Calibration:
    """The calibration set of one run.

    Attributes:
        batches: what ``model(batch)`` accepts; for classification float tensors [b, 3, H, W].
        seed: seed of the run; every random choice of a method draws from `generator`.
        cache: holds what other calibrations on the same images have computed; None: nothing is reused.
    """

    def __init__(
        self, batches: Sequence[Tensor], seed: int = 0, cache: TensorCache | None = None
    ) -> None:
        self.batches = [batch for batch in batches if len(batch)]
        self.seed = seed
        self.cache = cache
        if not self.batches:
            raise MethodError("the calibration set is empty; ask for at least one image")

    @property
    def n_images(self) -> int:
        """Number of images."""
        return sum(len(batch) for batch in self.batches)

    def generator(self) -> torch.Generator:
        """Return a CPU generator with the run's seed, always in the same state."""
        return torch.Generator().manual_seed(self.seed)

    def to(self, device: torch.device) -> "Calibration":
        """Return the same set on another device."""
        return Calibration([b.to(device) for b in self.batches], self.seed, self.cache)

    def whole(self) -> Tensor:
        """Return all images as one batch.

        Ranges and percentiles are exact only over all images at once, and the largest activation of
        one layer is small beside what a backward pass keeps, so range calibration uses this.
        """
        return self.batches[0] if len(self.batches) == 1 else torch.cat(self.batches)

    def first(self, images: int) -> "Calibration":
        """Return the first ``images`` of the set."""
        if images >= self.n_images:
            return self
        return Calibration([self.whole()[:images]], self.seed, self.cache)

    def behind(self, images: int) -> "Calibration":
        """Return the set without its first ``images``; raises `MethodError` where none is left."""
        return Calibration([self.whole()[images:]], self.seed, self.cache)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield mini-batches of at most ``size`` images."""
        yield from torch.split(self.whole(), size)
