"""Images read from disk, as timm reads them, without skipping any."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from vit_ptq_bench.tasks import storage
from vit_ptq_bench.tasks.classification.decoding import decoded
from vit_ptq_bench.tasks.classification.image_listing import Sample


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images from disk through a transform; an unreadable one is an error, never skipped.

    Args:
        samples: images and labels.
        transform: from a PIL image in RGB to float32 [3, H, W].
        contents: SHA-256 of each image, as planned; None: of the images as they are now.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Compose,
        contents: Sequence[str] | None = None,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.contents = contents or storage.content_ids([path for path, _ in samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = decoded(path, storage.read_content(path, self.contents[index]))
        tensor: Tensor = self.transform(image)
        return tensor, label
