"""mmdet's data sets and pipelines, over images that were checked before."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from vit_ptq_bench.tasks.api.cache import TensorCache, image_key
from vit_ptq_bench.tasks.detection.data import CocoFiles
from vit_ptq_bench.tasks.detection.openmmlab import CocoDataset, Compose

NOTED = {"img_shape": torch.int64, "ori_shape": torch.int64, "scale_factor": torch.float64}
"""What mmdet notes of an image that it has read and resized."""


def build_dataset(files: CocoFiles, pipeline: list[Any], training: bool = False) -> Any:
    """Return mmdet's ``CocoDataset`` over ``files``.

    Args:
        files: from `read_coco`.
        pipeline: mmdet transforms.
        training: leave out images without objects.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of its every step
        return CocoDataset(
            ann_file=str(files.annotations),
            data_prefix={"img": str(files.images)},
            metainfo={"classes": files.classes},
            pipeline=pipeline,
            test_mode=not training,
            filter_cfg={"filter_empty_gt": True, "min_size": 1} if training else None,
        )


def training_pipeline(scale: tuple[int, int], masks: bool) -> list[dict[str, Any]]:
    """Return mmdet's steps of training: no augmentation, for digits have a direction."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks, "poly2mask": True},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "PackDetInputs"},
    ]


def test_pipeline(scale: tuple[int, int], cache: TensorCache | None = None) -> list[Any]:
    """Return mmdet's steps of evaluation.

    Args:
        scale: (long side, short side) at most.
        cache: where what other runs have decoded lies; None: nothing is reused.
    """
    reading: list[Any] = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
    ]
    return [
        *(reading if cache is None else [CachedReading(reading, cache)]),
        {
            "type": "PackDetInputs",
            "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
        },
    ]


class CachedReading:
    """Steps that read and resize an image, taken only if no earlier run has left what comes of them.

    Args:
        steps: of mmdet's pipeline.
        cache: where pixels (uint8, [H, W, 3]) and the shapes that mmdet notes lie.
    """

    def __init__(self, steps: list[dict[str, Any]], cache: TensorCache) -> None:
        self._read, self._words, self._cache = Compose(steps), repr(steps), cache

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add ``img``, ``img_shape``, ``ori_shape`` and ``scale_factor`` to what is known of an image."""
        key = image_key(self._words, [Path(results["img_path"])])
        found = self._cache.get(key)
        if found is not None:
            return results | {
                "img": found["pixels"].numpy(),
                **{name: tuple(found[name].tolist()) for name in NOTED},
            }
        read: dict[str, Any] | None = self._read(results)
        if read is not None:
            noted = {name: torch.tensor(read[name], dtype=kind) for name, kind in NOTED.items()}
            self._cache.put(key, {"pixels": torch.from_numpy(read["img"]), **noted})
        return read


class ImageFolder:
    """Image files in the form of mmdet's data sets, without annotations."""

    def __init__(self, paths: list[Path], pipeline: list[Any]) -> None:
        self._paths, self._pipeline = paths, Compose(pipeline)

    def __len__(self) -> int:
        return len(self._paths)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return what the pipeline starts from."""
        return {"img_path": str(self._paths[index]), "img_id": index}

    def prepare_data(self, index: int) -> Any:
        """Run the pipeline on one image."""
        return self._pipeline(self.get_data_info(index))
