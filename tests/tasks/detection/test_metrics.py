"""The figures of detection against mmdet's own metric, pycocotools, and counting by hand."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vit_ptq_bench.tasks.detection.data import read_coco
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.figures import FIGURES
from vit_ptq_bench.tasks.detection.metrics import Collector
from vit_ptq_bench.tasks.detection.scene_rendering import write_scenes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return read_coco(write_scenes(folder, source_pools()[0], 12, seed=3), folder)


def _noisy(files):
    """Detections near the truth: moved boxes, some with the wrong class, some missing, some invented."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    rng = np.random.default_rng(0)
    data = json.loads(files.annotations.read_text())
    samples = []
    for image in data["images"]:
        own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        boxes, labels, masks = [], [], []
        for entry in own:
            if rng.random() < 0.2:
                continue
            x, y, w, h = entry["bbox"]
            shift = rng.normal(0, 0.05 * w, 2)
            boxes.append([x + shift[0], y + shift[1], x + w + shift[0], y + h + shift[1]])
            wrong = rng.random() < 0.15
            labels.append(int(rng.integers(10)) if wrong else entry["category_id"] - 1)
            mask = coco_mask.decode(entry["segmentation"]).astype(bool)
            masks.append(np.roll(mask, np.rint(shift[::-1]).astype(int), (0, 1)))
        boxes.append([0.0, 0.0, 30.0, 30.0])
        labels.append(3)
        masks.append(np.zeros((160, 160), dtype=bool))
        sample = DetDataSample(metainfo={"img_id": image["id"], "ori_shape": (160, 160)})
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(np.array(boxes), dtype=torch.float32),
            labels=torch.tensor(labels),
            scores=torch.tensor(rng.random(len(labels)), dtype=torch.float32),
            masks=torch.tensor(np.array(masks)),
        )
        sample.gt_instances = InstanceData()
        samples.append(sample)
    return samples


@pytest.fixture(scope="module")
def collected(files):
    collector = Collector(files, files.image_ids, masks=True)
    collector.add(_noisy(files))
    return collector, collector.evaluation()


def test_figures_are_those_of_mmdets_metric(collected):
    collector, evaluation = collected
    theirs = collector.metric.compute_metrics(collector.metric.results)
    names = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    for kind, prefix in (("box", "bbox"), ("mask", "segm")):
        for mine, name in zip(FIGURES, names, strict=True):
            assert theirs[f"{prefix}_{name}"] == round(
                evaluation.metrics[f"{kind}_{mine}"] / 100, 3
            )
    assert 20 < evaluation.metrics["box_ap"] < 90


def test_figures_are_those_of_pycocotools(collected, files, tmp_path):
    collector, evaluation = collected
    names = collector.metric.results2json(
        [prediction for _, prediction in collector.metric.results], str(tmp_path / "found")
    )
    truth = COCO(str(files.annotations))
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        theirs = COCOeval(truth, truth.loadRes(names[name]), name)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
        assert evaluation.metrics[f"{kind}_ap"] == 100 * theirs.stats[0]


def test_interval_holds_the_figure_and_two_evaluations_agree(collected, files):
    _, evaluation = collected
    for name, (low, high) in evaluation.intervals.items():
        assert low < evaluation.metrics[name] < high
        assert evaluation.standard_errors[name] > 0
    again = Collector(files, files.image_ids, masks=True)
    again.add(_noisy(files))
    second = again.evaluation()
    assert second.metrics == evaluation.metrics
    assert second.intervals == evaluation.intervals


def test_perfect_detections_are_right_everywhere_and_an_invented_one_counts_against(files):
    from mmengine.structures import InstanceData

    samples = _noisy(files)
    data = json.loads(files.annotations.read_text())
    for sample in samples:
        own = [
            a for a in data["annotations"] if a["image_id"] == sample.img_id and not a["iscrowd"]
        ]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        found = InstanceData()
        found.bboxes = torch.tensor(corners, dtype=torch.float32)
        found.labels = torch.tensor([a["category_id"] - 1 for a in own])
        found.scores = torch.ones(len(own))
        found.masks = torch.tensor(
            np.array([coco_mask.decode(a["segmentation"]) for a in own])
        ).bool()
        sample.pred_instances = found
    collector = Collector(files, files.image_ids, masks=True)
    collector.add(samples)
    perfect = collector.evaluation()
    assert perfect.metrics["box_ap"] == pytest.approx(100)
    assert perfect.metrics["mask_ap"] == pytest.approx(100)
    assert perfect.outcomes.all()
    # As many invented ones as objects and one more: less than half of what is shown or there is right.
    first = samples[0].pred_instances
    extra = InstanceData()
    n = len(first) + 1
    extra.bboxes = torch.tensor([[150.0, 150.0, 159.0, 159.0]]).repeat(n, 1)
    extra.labels = (first.labels[0].repeat(n) + 1) % 10
    extra.scores = torch.full((n,), 0.9)
    extra.masks = torch.zeros(n, 160, 160, dtype=torch.bool)
    samples[0].pred_instances = first.cat([first, extra])
    collector = Collector(files, files.image_ids, masks=True)
    collector.add(samples)
    assert collector.evaluation().outcomes.tolist() == [False] + [True] * (len(samples) - 1)
