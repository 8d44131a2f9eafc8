"""mmdet data sets of COCO annotations: checked before use, read by mmdet's own pipeline."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_ptq_bench.tasks.cache import TensorCache, image_key
from vit_ptq_bench.tasks.errors import TaskError


@dataclass(frozen=True)
class CocoFiles:
    """One set of images with their annotations in COCO's form.

    Attributes:
        annotations: the JSON file.
        images: the folder of the images.
        classes: names of the categories, in the order of their ids.
        has_masks: whether every object has a segmentation.
        image_ids: ids of all images, ascending.
    """

    annotations: Path
    images: Path
    classes: tuple[str, ...]
    has_masks: bool
    image_ids: tuple[int, ...]


def read_coco(annotations: Path, images: Path) -> CocoFiles:
    """Check an annotation file and return what is in it.

    Raises:
        TaskError: the file or the folder is missing, the JSON is truncated, has no images or categories, an
            object belongs to an unknown category or image, or a box is none; the first few are named.
    """
    if not annotations.is_file():
        raise TaskError(f"{annotations}: no such annotation file")
    if not images.is_dir():
        raise TaskError(f"{images}: no such folder of images")
    data = _json(annotations)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise TaskError(f"{annotations}: the list {key!r} of COCO's form is missing")
    if not data["images"] or not data["categories"]:
        raise TaskError(f"{annotations}: there are no images, or no categories")
    try:
        _check(annotations, data)
        categories = sorted(data["categories"], key=lambda category: category["id"])
        return CocoFiles(
            annotations,
            images,
            tuple(category["name"] for category in categories),
            all(entry.get("segmentation") for entry in data["annotations"]),
            tuple(sorted(image["id"] for image in data["images"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise TaskError(f"{annotations}: not in COCO's form ({error!r} is missing)") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TaskError(f"{path}: not readable as JSON ({error}); it may be truncated") from error
    if not isinstance(data, dict):
        raise TaskError(f"{path}: holds no object of COCO's form")
    return data


def _check(path: Path, data: dict[str, Any]) -> None:
    images = {image["id"] for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    problems: dict[str, list[int]] = {}
    for entry in data["annotations"]:
        box = entry["bbox"]
        if entry["category_id"] not in categories:
            problems.setdefault("have an unknown category_id", []).append(entry["id"])
        elif entry["image_id"] not in images:
            problems.setdefault("have an unknown image_id", []).append(entry["id"])
        elif len(box) != 4 or min(box[2:]) < 0:
            problems.setdefault("have no box (x, y, width, height)", []).append(entry["id"])
    if problems:
        texts = [f"{len(ids)} annotations {what}: {ids[:3]}" for what, ids in problems.items()]
        raise TaskError(f"{path}: {'; '.join(texts)}")


def build_dataset(files: CocoFiles, pipeline: list[Any], training: bool = False) -> Any:
    """Return mmdet's ``CocoDataset`` over ``files``.

    Args:
        files: from `read_coco`.
        pipeline: mmdet transforms.
        training: leave out images without objects.
    """
    from mmdet.datasets import CocoDataset

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
        import mmdet.datasets.transforms  # noqa: F401  registers mmdet's steps
        from mmcv.transforms import Compose

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


NOTED = {"img_shape": torch.int64, "ori_shape": torch.int64, "scale_factor": torch.float64}
"""What mmdet notes of an image that it has read and resized."""
