"""Images read from disk, without skipping any."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from vit_ptq_bench.tasks.classification.image_listing import Sample
from vit_ptq_bench.tasks.errors import TaskError


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images from disk through a transform; an unreadable one is an error, never skipped."""

    def __init__(self, samples: Sequence[Sample], transform: Compose) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                tensor: Tensor = self.transform(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise TaskError(
                f"{path}: corrupt or unreadable image ({error}); fetch it again"
            ) from error
        return tensor, label
