"""Detectors of every kind from config files, through the task: loaded, calibrated, quantized and judged."""

import warnings

import pytest
import torch
from safetensors.torch import save_file

from tests.small_detectors import (
    CLASSES,
    DETRS,
    ONE_STAGE,
    VITS,
    small_config,
    small_detector,
    write_config,
)
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.scene_rendering import write_scenes
from vit_ptq_bench.tasks.errors import TaskError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four scenes to judge on and eight to calibrate on, in COCO's layout."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for part, n in (("val", 4), ("train", 8)):
        path = write_scenes(root / part, source_pools()[0], n, seed=n)
        path.rename(root / "annotations" / f"{part}.json")
    return root


def task_of(root, folder, content, name="own"):
    """The task with random weights of a detector, and the path of its config."""
    weights = folder / f"{name}.safetensors"
    state = small_detector(folder, content).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, weights)
    config = write_config(folder / f"{name}.py", content)
    return TASKS.get("coco")(TaskOptions(data_dir=root, checkpoint=weights)), str(config)


@pytest.fixture
def no_warnings():
    """Warnings for the user are errors, also those that torch gives once in a process."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
    torch.set_warn_always(always)


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("kind", [*ONE_STAGE, *DETRS, *VITS])
def test_a_detector_without_masks_is_judged_by_its_boxes_with_its_own_preprocessing(
    root, tmp_path, kind
):
    scope = "backbone" if kind in DETRS else "full"
    task, model = task_of(root, tmp_path, small_config(kind))
    loaded = task.load_model(model)
    batches = task.calibration_batches(loaded, 8, 0)
    assert torch.cat(batches).shape == (8, 3, 96, 96)
    exact = task.evaluate(loaded.module, loaded, CPU)
    assert exact.n == 4
    assert "box_ap" in exact.metrics and "mask_ap" not in exact.metrics
    for name in ("fp32", "minmax"):
        method = METHODS.get(name).create()
        table = method.bit_table(BitWidth(32, 32) if name == "fp32" else BitWidth(4, 4))
        quantized = method.quantize(loaded.module, table.with_scope(scope), Calibration(batches))
        found = task.evaluate(quantized, loaded, CPU)
        assert found.metrics.keys() == exact.metrics.keys()
        if name == "fp32":
            assert found.metrics == pytest.approx(exact.metrics, nan_ok=True)


def test_reconstruction_runs_on_the_tasks_own_batches(root, tmp_path):
    task, model = task_of(root, tmp_path, small_config("retinanet"))
    loaded = task.load_model(model)
    method = METHODS.get("brecq").create(dict(METHODS.get("brecq").quick))
    table = method.bit_table(BitWidth(6, 6)).with_scope("full")
    calibration = Calibration(task.calibration_batches(loaded, 8, 0))
    quantized = method.quantize(loaded.module, table, calibration)
    assert task.evaluate(quantized, loaded, CPU).n == 4


def test_logits_that_are_not_finite_give_no_figure(root, tmp_path):
    task, model = task_of(root, tmp_path, small_config("fcos"))
    loaded = task.load_model(model)
    loaded.module.bbox_head.conv_cls.bias.data[0] = torch.nan
    with pytest.raises(TaskError, match="bbox_head gives is not finite"):
        task.evaluate(loaded.module, loaded, CPU)


def test_a_detector_of_other_classes_than_the_data_set_is_refused(root, tmp_path):
    content = small_config("gfl")
    content["model"]["bbox_head"]["num_classes"] = 3
    task, model = task_of(root, tmp_path, content)
    with pytest.raises(TaskError, match=f"finds 3 classes, .* has {CLASSES}"):
        task.load_model(model)
