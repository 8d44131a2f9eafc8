"""The training script on a data set in COCO's form, and its weights judged by the task ``coco``."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.scene_rendering import write_scenes
from vit_ptq_bench.tasks.training.detectors import main, parse_options


@pytest.fixture
def root(tmp_path):
    """Boxes of two classes without masks."""
    (tmp_path / "annotations").mkdir()
    for part, n in (("val", 3), ("train", 6)):
        path = write_scenes(tmp_path / part, source_pools()[0], n, seed=n)
        data = json.loads(path.read_text())
        data["categories"] = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
        for entry in data["annotations"]:
            entry["category_id"] = 1 + entry["category_id"] % 2
            del entry["segmentation"]
        (tmp_path / "annotations" / f"{part}.json").write_text(json.dumps(data))
        path.unlink()
    return tmp_path


def _train(root, output, *more):
    paths = {"data": root / "annotations" / "train.json", "images": root / "train"}
    given = [word for key, value in paths.items() for word in (f"--{key}", str(value))]
    given += ["--size", "96", "--batch-size", "2", "--work", str(output.with_suffix(""))]
    main(["mask_rcnn_swin_mini", *given, "--output", str(output), *more])


def test_weights_and_config_fit_the_task_coco(root, tmp_path):
    output = tmp_path / "mine.safetensors"
    _train(root, output, "--iterations", "2")
    task = TASKS.get("coco")(TaskOptions(data_dir=root, checkpoint=output))
    loaded = task.load_model(str(output.with_suffix(".py")))
    assert loaded.module.roi_head.bbox_head.num_classes == 2
    assert not loaded.module.roi_head.with_mask
    found = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert found.n == 3 and "mask_ap" not in found.metrics
    images = task.calibration_batches(loaded, 2, 0)
    assert images[0].shape[-2:] == (96, 96)


def test_a_training_goes_on_from_its_checkpoint_and_no_further_than_asked(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr("vit_ptq_bench.tasks.training.detectors.SAVE_EVERY", 1)
    whole, halves = tmp_path / "whole.safetensors", tmp_path / "halves.safetensors"
    _train(root, whole, "--iterations", "2")
    checkpoint = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert checkpoint["iteration"] == 2
    _train(root, halves, "--iterations", "2")
    _train(root, halves, "--iterations", "2")  # everything is done: nothing may change
    first, second = load_file(whole), load_file(halves)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_of_another_data_set_need_a_file_of_their_own(capsys):
    with pytest.raises(SystemExit):
        parse_options(["mask_rcnn_swin_mini", "--data", "train.json"])
    assert "give --output" in capsys.readouterr().err
