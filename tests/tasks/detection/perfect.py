"""Perfect detections of annotated images, judged as a run judges those of a detector."""

from __future__ import annotations

from typing import Any

import torch
from pycocotools import mask as coco_mask

from vit_ptq_bench.tasks.api.task import Evaluation
from vit_ptq_bench.tasks.detection.data import CocoFiles, check_pictures
from vit_ptq_bench.tasks.detection.metrics import Collector


class Sample:
    """What mmdet gives of an image, in the form that its metric asks for."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def to_dict(self) -> dict[str, Any]:
        return self.facts


def judge_perfect(files: CocoFiles) -> Evaluation:
    """Judge a detector that gives the boxes and masks of the file; where there is no mask, the whole box."""
    check_pictures(files, range(len(files.data["images"])))
    collector = Collector(files, files.image_ids, files.has_masks)
    collector.add([_sample(files, image) for image in files.data["images"]])
    return collector.evaluation()


def _sample(files: CocoFiles, image: dict[str, Any]) -> Sample:
    own = [
        entry
        for entry in files.data["annotations"]
        if entry["image_id"] == image["id"] and not entry["iscrowd"]
    ]
    height, width = image["height"], image["width"]
    corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)]
    found = {
        "bboxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.ones(len(own)),
        "labels": torch.tensor([entry["category_id"] - 1 for entry in own], dtype=torch.int64),
    }
    if files.has_masks:
        found["masks"] = torch.zeros(len(own), height, width, dtype=torch.bool)
        for mask, entry in zip(found["masks"], own, strict=True):
            x, y, w, h = (round(side) for side in entry["bbox"])
            if entry["segmentation"] is None:
                mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
            else:
                mask |= torch.from_numpy(_decoded(entry["segmentation"], height, width))
    return Sample({"img_id": image["id"], "ori_shape": (height, width), "pred_instances": found})


def _decoded(value: Any, height: int, width: int) -> Any:
    if isinstance(value, list):
        value = coco_mask.merge(coco_mask.frPyObjects(value, height, width))
    elif isinstance(value["counts"], list):
        value = coco_mask.frPyObjects(value, height, width)
    return coco_mask.decode(value).astype(bool)
