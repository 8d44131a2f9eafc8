"""mmdet's data sets and pipelines, over images that were checked before."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vit_ptq_bench.tasks.api.cache import TensorCache
from vit_ptq_bench.tasks.detection.data import CocoFiles, Picture
from vit_ptq_bench.tasks.detection.openmmlab import CocoDataset, Compose, imfrombytes
from vit_ptq_bench.tasks.detection.pictures import require_whole
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import read_content

NOTED = {"img_shape": torch.int64, "ori_shape": torch.int64, "scale_factor": torch.float64}
"""What mmdet notes of an image that it has read and resized."""

PLAIN_STEPS = ("LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs")
"""Of a config's test pipeline; any other changes what the detector sees."""

PLAIN_LOADING: Mapping[str, Any] = {
    "to_float32": False,
    "color_type": "color",
    "imdecode_backend": "cv2",
}


PLAIN_RESIZING: Mapping[str, Any] = {
    "scale_factor": None,
    "backend": "cv2",
    "interpolation": "bilinear",
}


def build_dataset(files: CocoFiles, pipeline: list[Any]) -> Any:
    """Return mmdet's ``CocoDataset`` to train on, without the images that show no object.

    Args:
        files: from `read_coco`.
        pipeline: mmdet transforms.
    """
    with (
        TemporaryDirectory(prefix="bench-") as folder,
        contextlib.redirect_stdout(io.StringIO()),  # pycocotools tells of its every step
    ):
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps(files.data), encoding="utf-8")
        return CocoDataset(
            ann_file=str(path),
            data_prefix={"img": str(files.images)},
            metainfo={"classes": files.classes},
            pipeline=pipeline,
            filter_cfg={"filter_empty_gt": True, "min_size": 1},
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
    return [
        ReadImage(scale, cache),
        {
            "type": "PackDetInputs",
            "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
        },
    ]


def test_scale(config: Any) -> tuple[int, int] | None:
    """Return the size (long side, short side) in a config's test pipeline; None if it has none.

    The pipeline is ``test_pipeline`` or, where a config has none, that of its ``test_dataloader``.

    Raises:
        TaskError: the pipeline does something else to images than mmdet's own test pipelines.
    """
    scale = None
    for step in config.get("test_pipeline") or _loader_pipeline(config):
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind not in PLAIN_STEPS:
            raise _unlike(f"the step {kind!r}")
        if kind == "LoadImageFromFile":
            _require_plain(step, PLAIN_LOADING, "loaded")
        if kind == "Resize":
            if scale is not None or not step.get("keep_ratio", False):
                raise _unlike("a second Resize, or one without keep_ratio = True")
            _require_plain(step, PLAIN_RESIZING, "resized")
            scale = _sides(step.get("scale"))
    return scale


def _loader_pipeline(config: Any) -> Sequence[Any]:
    value: Any = config
    for name in ("test_dataloader", "dataset", "pipeline"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, list | tuple) else ()


def _require_plain(step: Mapping[str, Any], plain: Mapping[str, Any], when: str) -> None:
    odd = [key for key, value in plain.items() if step.get(key, value) != value]
    if odd:
        raise _unlike(f"{odd[0]} = {step[odd[0]]!r} when images are {when}")


def _sides(scale: object) -> tuple[int, int]:
    sides = list(scale) if isinstance(scale, list | tuple) else []
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise _unlike(f"a Resize to {scale!r}, which is not (long side, short side)")
    return sides[0], sides[1]


def _unlike(what: str) -> TaskError:
    return TaskError(
        f"the config's test_pipeline has {what}; figures are of images that are loaded, resized with their "
        "aspect ratio kept and packed, so leave it out or judge the detector elsewhere"
    )


class ReadImage:
    """Reads and resizes an image, unless an earlier run has left what comes of it.

    The file's bytes are held against the hash that the data's identity is made of, and decoded as mmdet's
    ``LoadImageFromFile`` does.

    Args:
        scale: (long side, short side) at most.
        cache: where pixels (uint8, [H, W, 3]) and the shapes that mmdet notes lie; None: nowhere.
    """

    def __init__(self, scale: tuple[int, int], cache: TensorCache | None) -> None:
        self._resize = Compose([{"type": "Resize", "scale": scale, "keep_ratio": True}])
        self._scale, self._cache = scale, cache

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``img``, ``img_shape``, ``ori_shape`` and ``scale_factor`` to what is known of an image."""
        words = f"detection {self._scale} {results['content']}"
        key = hashlib.sha256(words.encode()).hexdigest()
        found = None if self._cache is None else self._cache.get(key)
        if found is not None:
            return results | {
                "img": found["pixels"].numpy(),
                **{name: tuple(found[name].tolist()) for name in NOTED},
            }
        pixels = read_pixels(Path(results["img_path"]), results["content"])
        shape = pixels.shape[:2]
        read: dict[str, Any] = self._resize(
            results | {"img": pixels, "img_shape": shape, "ori_shape": shape}
        )
        if self._cache is not None:
            noted = {name: torch.tensor(read[name], dtype=kind) for name, kind in NOTED.items()}
            self._cache.put(key, {"pixels": torch.from_numpy(read["img"]), **noted})
        return read


def read_pixels(path: Path, content: str) -> Any:
    """Return an image as mmdet decodes it: uint8 [H, W, 3], blue first, upright.

    Args:
        path: the file.
        content: SHA-256 of its bytes.

    Raises:
        TaskError: the file has other bytes, or is no whole image that OpenCV can decode.
    """
    encoded = read_content(path, content)
    require_whole(path, encoded)
    try:
        pixels = imfrombytes(encoded, flag="color", backend="cv2")
    except Exception as error:  # OpenCV's decoders each raise their own kinds
        raise TaskError(f"{path}: cannot be read as an image ({error})") from error
    if pixels is None:
        raise TaskError(
            f"{path}: cannot be read as an image of three colours by OpenCV, which mmdet reads with; "
            "convert it to PNG or JPEG with 8 bits"
        )
    return pixels


class PictureSet:
    """Images in the form of mmdet's data sets, without annotations."""

    def __init__(self, pictures: Sequence[Picture], pipeline: list[Any]) -> None:
        self.pictures, self._pipeline = list(pictures), Compose(pipeline)

    def __len__(self) -> int:
        return len(self.pictures)

    def prepare_data(self, index: int) -> dict[str, Any]:
        """Run the pipeline on one image.

        Raises:
            TaskError: the image cannot be read, or is another than when it was hashed.
        """
        picture = self.pictures[index]
        facts = {
            "img_path": str(picture.path),
            "img_id": picture.image_id,
            "content": picture.content,
        }
        sample: dict[str, Any] = self._pipeline(facts)
        return sample
