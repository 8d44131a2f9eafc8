"""Detectors whose feature maps come from elsewhere, such as a runtime; their heads stay in mmdet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vit_ptq_bench.bench.errors import BenchError

SURE = 0.3
"""Least score of the boxes that are compared, as mmdet draws them."""

OVERLAP = 0.5
"""Least IoU of two boxes that are one object's."""

FeaturesOf = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


class FeatureMaps(nn.Module):
    """Backbone and neck of a detector of mmdet."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the neck's feature maps of ``images`` [b, 3, H, W]."""
        return tuple(self.detector.extract_feat(images))


def padded(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images [b, 3, *size] with zeros to the right and below, as mmdet pads those of a batch.

    Raises:
        BenchError: they are larger.
    """
    height, width = images.shape[-2:]
    if height > size[0] or width > size[1]:
        raise BenchError(
            f"an image of {height} x {width} does not fit the file's {size[0]} x {size[1]}; export with "
            "--size, as large as the largest height and width"
        )
    return F.pad(images, (0, size[1] - width, 0, size[0] - height))


class Found(NamedTuple):
    """The sure boxes of an image: [n, 4] (x1, y1, x2, y2) and their classes [n]."""

    boxes: Tensor
    labels: Tensor


class DetectorOn(nn.Module):
    """A detector that finds objects in the feature maps that something else gives, and notes them.

    Args:
        detector: of mmdet, wrapped or not: its heads are used.
        features: maps images [b, 3, *size] to what the heads read.
        size: that all images are padded to.

    Attributes:
        found: of every image so far, in the order of the calls.
    """

    def __init__(self, detector: nn.Module, features: FeaturesOf, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self._features, self._size = features, size
        self.found: list[Found] = []

    def forward(self, images: Tensor, facts: Sequence[Any], mode: str = "predict") -> Any:
        """Return mmdet's data samples of ``images`` [b, 3, H, W], and with them what was found."""
        for fact in facts:
            fact.set_metainfo({"batch_input_shape": self._size})
        images = padded(images, self._size)
        maps = self._features(images)
        with self._given((maps,) if isinstance(maps, Tensor) else maps):
            samples = self.detector(images, facts, mode=mode)
        self.found += [_sure(sample.pred_instances) for sample in samples]
        return samples

    def alike(self, other: DetectorOn) -> float:
        """Return how many of the sure boxes, in percent, both found; 100 where neither is sure of any.

        A box is found again where the other has one of its class that overlaps it by `OVERLAP`.
        """
        both, all_boxes = 0, 0
        for mine, theirs in zip(self.found, other.found, strict=True):
            both += 2 * _pairs(mine, theirs)
            all_boxes += len(mine.labels) + len(theirs.labels)
        return 100 * both / all_boxes if all_boxes else 100.0

    @contextmanager
    def _given(self, maps: tuple[Tensor, ...]) -> Iterator[None]:
        """Let the detector's heads read ``maps``: what computes its own is hidden meanwhile."""
        self.detector.__dict__["extract_feat"] = lambda images: maps
        try:
            yield
        finally:
            del self.detector.__dict__["extract_feat"]


def _sure(instances: Any) -> Found:
    chosen = instances.scores >= SURE
    return Found(instances.bboxes[chosen].cpu(), instances.labels[chosen].cpu())


def _pairs(mine: Found, theirs: Found) -> int:
    """How many boxes have a partner; each of the others is one's at most, the best overlaps first."""
    overlaps = torchvision.ops.box_iou(mine.boxes, theirs.boxes)
    overlaps[mine.labels[:, None] != theirs.labels] = 0
    count = 0
    while overlaps.numel() and float(overlaps.max()) >= OVERLAP:
        row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
        overlaps[row], overlaps[:, column] = 0, 0
        count += 1
    return count
