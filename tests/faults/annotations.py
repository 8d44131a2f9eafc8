"""Mutated annotations in COCO's JSON.

A detector that knows the truth (from the very file, read without the code under test) has to reach AP 100 on
what was read.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from tests.faults.mutations import mutate_bytes, mutate_file, mutate_tree
from tests.faults.trials import Kind, Outcome, faulty

CLASSES = ("tram", "bus", "a bicycle")

CATEGORY_IDS = (1, 3, 7)

SIZES = ((64, 48), (48, 64), (50, 50), (40, 60))

TRUTH = (
    ((4, 5, 20, 15), (30, 20, 25, 25), (10, 30, 8, 9)),
    ((2, 2, 30, 40), (20, 30, 20, 30)),
    ((5, 5, 12, 12), (25, 5, 12, 12), (5, 25, 12, 12), (25, 25, 20, 20)),
    (),
)
"""Boxes (x, y, width, height) on each image; their classes go round."""


def image_name(index: int) -> str:
    return f"picture-{index}.png"


def write_images(folder: Path) -> None:
    """Pictures of the `SIZES`."""
    folder.mkdir(parents=True)
    for index, size in enumerate(SIZES):
        Image.new("RGB", size, (40 * index, 90, 120)).save(folder / image_name(index))


def truth() -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Image, class and box of every object."""
    for image, boxes in enumerate(TRUTH):
        for number, box in enumerate(boxes):
            yield image, (image + number) % len(CLASSES), box


CONFIG = """
_base_ = {base!r}
test_pipeline = [dict(type="Resize", scale=(64, 64), keep_ratio=True)]
"""


@dataclass(frozen=True)
class CocoData:
    """A data set in COCO's form that is small, and a detector for it whose weights do not matter."""

    root: Path
    tree: dict[str, Any]
    loaded: Any
    notes: tuple[str, ...]

    @property
    def annotations(self) -> Path:
        return self.root / "annotations" / "val.json"


def coco_tree() -> dict[str, Any]:
    """The truth in COCO's form: polygons, and one crowd whose mask is run lengths."""
    entries = []
    for number, (image, label, (x, y, w, h)) in enumerate(truth(), start=1):
        entries.append(
            {
                "id": number,
                "image_id": image + 10,
                "category_id": CATEGORY_IDS[label],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    crowd = {"size": [50, 50], "counts": [0, 100, 2400]}
    entries.append(
        {"id": 99, "image_id": 12, "category_id": 3, "bbox": [0, 0, 2, 50], "area": 100, "iscrowd": 1,
         "segmentation": crowd}
    )  # fmt: skip
    return {
        "images": [
            {"id": i + 10, "file_name": image_name(i), "width": w, "height": h}
            for i, (w, h) in enumerate(SIZES)
        ],
        "categories": [
            {"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)
        ],
        "annotations": entries,
    }


def prepare_coco(folder: Path) -> CocoData:
    """The data set, the detector, and the proof that the unmutated file gives AP 100."""
    from vit_ptq_bench.tasks.api.task import LoadedModel
    from vit_ptq_bench.tasks.detection.models import build_detector, read_config, set_classes
    from vit_ptq_bench.tasks.detection.zoo import config_path

    torch.set_num_threads(1)
    root = folder / "data"
    for part in ("val", "train"):
        write_images(root / part)
    (root / "annotations").mkdir()
    config = folder / "tiny.py"
    config.write_text(CONFIG.format(base=str(config_path("mask_rcnn_swin_mini"))))
    described = read_config(config)
    set_classes(described.model, len(CLASSES), masks=True)
    loaded = LoadedModel(str(config), build_detector(described))
    data = CocoData(root, coco_tree(), loaded, ())
    data.annotations.write_text(json.dumps(data.tree))
    notes = coco_task(data).data_notes()
    data = CocoData(root, data.tree, loaded, tuple(notes))
    outcome = judge_coco(data, "nothing")
    assert outcome.verdict == "right", outcome.text
    return data


def coco_task(data: CocoData) -> Any:
    from vit_ptq_bench.tasks.api.options import TaskOptions
    from vit_ptq_bench.tasks.api.registry import TASKS

    return TASKS.get("coco")(TaskOptions(data_dir=data.root))


def trial_coco(data: CocoData, number: int, rng: random.Random) -> Outcome:
    """One or two changed places, mostly; else changed bytes."""
    tree, whats = data.tree, []
    for _ in range(rng.choice((1, 1, 1, 2))):
        tree, what = mutate_tree(tree, rng)
        whats.append(what)
    text = json.dumps(tree)
    content = text.encode()
    if rng.random() < 0.2:
        content, what = mutate_file(text, rng) if rng.random() < 0.5 else mutate_bytes(content, rng)
        whats.append(what)
    data.annotations.write_bytes(content)
    fault = "; ".join(whats)
    with faulty(fault):
        return judge_coco(data, fault)


def judge_coco(data: CocoData, fault: str) -> Outcome:
    """Read the file as a run does, and evaluate the detector that knows what stands in it."""
    task = coco_task(data)
    task.data_id()
    raw = json.loads(data.annotations.read_bytes())
    perfect = Perfect(task.files().classes, raw)
    evaluation = task.evaluate(perfect, data.loaded, torch.device("cpu"))
    wrong = {
        k: v for k, v in evaluation.metrics.items() if not math.isnan(v) and abs(v - 100) > 1e-6
    }
    if evaluation.n != len(raw["images"]):
        wrong["n"] = evaluation.n
    if perfect.count and math.isnan(evaluation.metrics["box_ap"]):
        wrong["box_ap"] = math.nan
    wrong |= {f"size of {name}": 0.0 for name in _other_sizes(data.root / "val", raw)}
    if not wrong:
        return Outcome("right", fault)
    notes = [note for note in task.data_notes() if note not in data.notes]
    if notes:
        return Outcome("refused", f"{fault}: said: {notes}")
    return Outcome("silent", f"{fault}: {wrong} of a perfect detector, and not a word")


def _other_sizes(folder: Path, raw: Mapping[str, Any]) -> Iterator[str]:
    """Images whose annotated size is not that of the file."""
    for entry in raw["images"]:
        with Image.open(folder / str(entry["file_name"])) as image:
            said = (entry.get("width", image.width), entry.get("height", image.height))
            if said != image.size and None not in said:
                yield entry["file_name"]


class Perfect(torch.nn.Module):
    """A detector that answers what the annotation file says of an image.

    Args:
        classes: names of the classes by label, as the task has them.
        raw: the parsed file.
    """

    def __init__(self, classes: Sequence[str], raw: Mapping[str, Any]) -> None:
        super().__init__()
        names = {category["id"]: str(category["name"]) for category in raw["categories"]}
        files = {image["id"]: image["file_name"] for image in raw["images"]}
        self.found: dict[str, list[tuple[Any, ...]]] = {}
        self.count = 0
        for entry in raw["annotations"]:
            if entry.get("iscrowd"):
                continue
            self.count += 1
            label = classes.index(names[entry["category_id"]])
            mask = entry.get("segmentation")
            self.found.setdefault(files[entry["image_id"]], []).append((label, entry["bbox"], mask))

    def forward(self, images: Any, samples: Sequence[Any], mode: str) -> list[Any]:
        """mmdet's samples with the truth as their predictions."""
        from mmengine.structures import InstanceData  # seconds of imports

        for sample in samples:
            found = self.found.get(Path(sample.img_path).name, [])
            height, width = sample.ori_shape
            boxes = np.array([box for _, box, _ in found], dtype=np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            masks = [_mask(mask, height, width) for _, _, mask in found]
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float64),
                labels=torch.tensor([label for label, _, _ in found], dtype=torch.int64),
                scores=torch.full((len(found),), 0.9),
                masks=torch.tensor(np.array(masks, dtype=bool).reshape(-1, height, width)),
            )
        return list(samples)


def _mask(segmentation: Any, height: int, width: int) -> Any:
    """The pixels of polygons or run lengths; none where there is no segmentation that has an area."""
    flat = isinstance(segmentation, list) and any(len(polygon) < 6 for polygon in segmentation)
    if not segmentation or flat:
        return np.zeros((height, width), dtype=bool)
    runs = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs).astype(bool)


KINDS = [
    Kind("coco", "mutated annotations in COCO's JSON", 1000, prepare_coco, trial_coco),
]
