"""A checkpoint of mmdet's own is known by its hash, and its figure is what full precision must reach."""

import pytest
import torch
from safetensors.torch import save_file

from tests.small_detectors import small_config, write_config
from vit_ptq_bench.bench.execution.run import check_gate
from vit_ptq_bench.tasks import coco
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.known_checkpoints import published_box_ap
from vit_ptq_bench.tasks.detection.models import build_detector, read_config
from vit_ptq_bench.tasks.detection.scene_rendering import write_scenes

MASK_RCNN_SWIN_T = "9d6b7cfa"
"""How mmdet's file of Mask R-CNN with Swin-T (1x) ends."""


def digest(start):
    return f"sha256:{start}{'0' * (64 - len(start))}"


def converted(path, source, state=None):
    state = state or {"weight": torch.zeros(1)}
    save_file(state, path, metadata={"source_sha256": digest(source)})
    return path


@pytest.mark.parametrize(
    ("start", "figure"),
    [
        (MASK_RCNN_SWIN_T, 42.7),
        ("b92c91f1", 48.2),  # Mask R-CNN, Swin-S, 3x
        ("a654145f", 57.2),  # DINO, Swin-L, five scales, 12 epochs
        ("01234567", None),
    ],
)
def test_a_published_checkpoint_is_known_by_its_hash(tmp_path, start, figure):
    file = converted(tmp_path / "a.safetensors", start)
    assert published_box_ap(file, digest("ffffffff")) == figure
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pth")
    assert published_box_ap(tmp_path / "a.pth", digest(start)) == figure


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A function: the known checkpoint on four scenes, which count as the whole of val2017."""
    monkeypatch.setattr(coco, "VAL2017", 4)
    monkeypatch.setattr(coco, "COCO_CLASSES", 10)
    monkeypatch.setattr(coco, "SCALE", (96, 96))
    (tmp_path / "annotations").mkdir()
    path = write_scenes(tmp_path / "val", source_pools()[0], 4, seed=4)
    path.rename(tmp_path / "annotations" / "val.json")
    config = write_config(tmp_path / "own.py", small_config("retinanet"))
    state = build_detector(read_config(config)).state_dict()
    weights = converted(tmp_path / "own.safetensors", MASK_RCNN_SWIN_T, state)

    def load(**options):
        task = TASKS.get("coco")(TaskOptions(data_dir=tmp_path, checkpoint=weights, **options))
        return task.load_model(str(config))

    return load


def test_full_precision_on_all_images_must_reach_the_published_figure(loaded):
    model = loaded()
    assert (model.reference, model.tolerance) == (42.7, 0.3)
    assert "metafile" in model.source
    check_gate("own", model, 42.6, "box_ap")
    with pytest.raises(Exception, match=r"own reaches 41\.90 box_ap in full precision, but 42\.70"):
        check_gate("own", model, 41.9, "box_ap")


def test_on_other_images_or_sizes_there_is_nothing_to_reach(loaded, monkeypatch):
    assert loaded(limit=2).reference is None
    monkeypatch.setattr(coco, "SCALE", (1333, 800))
    assert loaded().reference is None
