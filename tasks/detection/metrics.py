"""Box and mask average precision with their uncertainty, from mmdet's CocoMetric and pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from vit_ptq_bench.tasks.api.task import Evaluation
from vit_ptq_bench.tasks.detection.data import CocoFiles
from vit_ptq_bench.tasks.detection.figures import FIGURES, KINDS
from vit_ptq_bench.tasks.detection.openmmlab import COCO, CocoMetric

RESAMPLES = 100
"""Image sets drawn with replacement, for the uncertainty of average precision."""

SHOWN_SCORE = 0.3
"""Detections of a lower score do not count when an image is judged as a whole."""


@dataclass(frozen=True)
class Judged:
    """One kind of result (boxes or masks) of all images.

    Attributes:
        figures: `FIGURES` as shares; NaN where there is nothing of that size.
        replicates: average precision of resampled image sets, [RESAMPLES].
        right: bool [n], whether each image is mostly right, see `right_images`.
    """

    figures: dict[str, float]
    replicates: NDArray[np.float64]
    right: NDArray[np.bool_]


class Collector:
    """Takes detections batch by batch and judges them at the end.

    mmdet's ``CocoMetric`` turns detections into COCO's form; pycocotools judges them, unrounded.

    Args:
        files: the annotations.
        image_ids: the images that are evaluated, in their order.
        masks: whether the detector gives masks to judge.
    """

    def __init__(self, files: CocoFiles, image_ids: Sequence[int], masks: bool) -> None:
        self.kinds = {k: v for k, v in KINDS.items() if k == "box" or masks}
        self.image_ids = list(image_ids)
        self.metric = CocoMetric(metric=list(self.kinds.values()))
        self.metric.dataset_meta = {"classes": files.classes}
        self.metric.cat_ids = [category["id"] for category in files.data["categories"]]
        self.metric.img_ids = self.image_ids
        self.truths = {kind: truth(files, kind) for kind in self.kinds.values()}
        self.metric._coco_api = self.truths["bbox"]

    def add(self, samples: Sequence[Any]) -> None:
        """Take mmdet's ``DetDataSample`` of each image of a batch, with its predictions."""
        self.metric.process({}, [sample.to_dict() for sample in samples])

    def evaluation(self) -> Evaluation:
        """Judge everything."""
        judged = self._judge()
        metrics: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        errors: dict[str, float] = {}
        for kind, result in judged.items():
            metrics |= {f"{kind}_{name}": 100 * v for name, v in result.figures.items()}
            low, high = np.quantile(result.replicates, (0.025, 0.975))
            intervals[f"{kind}_ap"] = (100 * float(low), 100 * float(high))
            errors[f"{kind}_ap"] = 100 * float(result.replicates.std(ddof=1))
        box = judged["box"]
        return Evaluation(
            metrics, intervals, errors, len(self.image_ids), box.right, 100 * box.replicates
        )

    def _judge(self) -> dict[str, Judged]:
        predictions = [prediction for _, prediction in self.metric.results]
        with TemporaryDirectory(prefix="bench-") as folder:
            files = self.metric.results2json(predictions, str(Path(folder) / "found"))
            return {
                kind: judge(
                    self.truths[name], files[name], name, self.metric.cat_ids, self.image_ids
                )
                for kind, name in self.kinds.items()
            }


def truth(files: CocoFiles, kind: str) -> Any:
    """Return pycocotools' COCO of normalised annotations.

    An object without a mask is ignored where masks are judged: a detection inside of its box is neither
    right nor wrong.

    Args:
        files: the annotations.
        kind: ``bbox`` or ``segm``.
    """
    entries = [dict(entry) for entry in files.data["annotations"]]  # pycocotools writes into them
    if kind == "segm":
        for entry in entries:
            if entry["id"] in files.unsegmented:
                entry |= {"iscrowd": 1, "segmentation": [_rectangle(*entry["bbox"])]}
    found = COCO()
    found.dataset = {**files.data, "annotations": entries}
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def _rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def judge(
    truth: Any, found: str, kind: str, category_ids: Sequence[int], image_ids: Sequence[int]
) -> Judged:
    """Compare detections with annotations.

    Args:
        truth: pycocotools' COCO of the annotations.
        found: file with the detections in COCO's form.
        kind: ``bbox`` or ``segm``.
        category_ids: the categories.
        image_ids: the images that count.
    """
    entries = json.loads(Path(found).read_text())
    if not entries:
        return _nothing(truth, category_ids, image_ids)
    if kind == "segm":  # else pycocotools would measure sizes by boxes
        entries = [{k: v for k, v in entry.items() if k != "bbox"} for entry in entries]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {
        name: math.nan if value < 0 else float(value)
        for name, value in zip(FIGURES, evaluation.stats[:6], strict=True)
    }
    matches = np.array(evaluation.evalImgs, dtype=object)
    areas = len(evaluation.params.areaRng)
    matches = matches.reshape(len(category_ids), areas, len(image_ids))
    return Judged(figures, resampled(evaluation, matches), right_images(matches[:, 0]))


def _nothing(truth: Any, category_ids: Sequence[int], image_ids: Sequence[int]) -> Judged:
    """No detection at all: every figure is 0, and an image is right if it shows nothing."""
    empty = [
        not truth.getAnnIds(imgIds=[i], catIds=list(category_ids), iscrowd=False) for i in image_ids
    ]
    return Judged(dict.fromkeys(FIGURES, 0.0), np.zeros(RESAMPLES), np.array(empty, dtype=bool))


def resampled(evaluation: COCOeval, matches: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return the average precision of image sets drawn with replacement ([RESAMPLES]).

    Args:
        evaluation: after ``evaluate``.
        matches: its ``evalImgs`` as [categories, areas, images].
    """
    rng = np.random.default_rng(0)
    n = matches.shape[2]
    replica = copy.copy(evaluation)
    replica.params = copy.deepcopy(evaluation.params)
    # Drawn images may repeat: ids of their own keep pycocotools from dropping the copies.
    replica.params.imgIds = list(range(n))
    replica.params.areaRng = replica.params.areaRng[:1]
    replica.params.areaRngLbl = replica.params.areaRngLbl[:1]
    replica.params.maxDets = replica.params.maxDets[-1:]
    replica._paramsEval = replica.params
    values = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, n, n)
        replica.evalImgs = matches[:, 0, drawn].reshape(-1).tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            replica.accumulate()
        precision = replica.eval["precision"]
        valid = precision[precision > -1]
        values.append(float(valid.mean()) if valid.size else 0.0)
    return np.array(values)


def right_images(matches: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return which images are mostly right ([images]).

    Of the objects of an image and the detections of score 0.3 or more that match none, at least half must be
    objects that such a detection of the right class finds at an overlap of 0.5.

    Args:
        matches: pycocotools' ``evalImgs`` of all sizes, [categories, images].
    """
    right = np.empty(matches.shape[1], dtype=bool)
    for image, column in enumerate(matches.T):
        hits = objects = wrong = 0
        for found in column:
            if found is None:
                continue
            counted = ~found["dtIgnore"][0].astype(bool)
            counted &= np.asarray(found["dtScores"]) >= SHOWN_SCORE
            matched = found["dtMatches"][0] > 0
            hits += int((counted & matched).sum())
            wrong += int((counted & ~matched).sum())
            objects += int((~np.asarray(found["gtIgnore"], dtype=bool)).sum())
        right[image] = hits >= 0.5 * (objects + wrong)
    return right
