"""Data sets for detection: what is wrong is said before anything runs, and other layouts convert exactly."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.detection.data import judged_pictures
from vit_ptq_bench.tasks.detection.datasets import PictureSet
from vit_ptq_bench.tasks.detection.datasets import test_pipeline as evaluation_steps
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.models import build_detector, read_config
from vit_ptq_bench.tasks.detection.scene_rendering import write_scenes
from vit_ptq_bench.tasks.detection.unpickle import convert_checkpoint
from vit_ptq_bench.tasks.detection.zoo import BUNDLED, BUNDLED_SCALE, config_path
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.checkpoints import read_state_dict

MODEL = "mask_rcnn_swin_mini"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    save_file(build_detector(read_config(config_path(MODEL))).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Six scenes to judge on and eight to calibrate on, in COCO's layout."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for part, n in (("val", 6), ("train", 8)):
        path = write_scenes(root / part, source_pools()[0], n, seed=n)
        path.rename(root / "annotations" / f"{part}.json")
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


def _own(folder, scale):
    """A config file of one's own with a size; None: without one."""
    path = folder / "own.py"
    steps = [] if scale is None else [{"type": "Resize", "scale": scale, "keep_ratio": True}]
    path.write_text(f"_base_ = {str(config_path(MODEL))!r}\ntest_pipeline = {steps!r}\n")
    return str(path)


def _task(root, weights, **options):
    return TASKS.get("coco")(TaskOptions(data_dir=root, checkpoint=weights, **options))


def _edit(root, change):
    path = root / "annotations" / "val.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _evaluate(task):
    loaded = task.load_model(MODEL)
    return task.evaluate(loaded.module, loaded, torch.device("cpu"))


def test_a_detector_that_finds_nothing_has_ap_0(root, weights):
    """Random weights give scores near 1 / 11; none reaches the threshold of 0.99."""
    task = _task(root, weights)
    loaded = task.load_model(MODEL)
    loaded.module.roi_head.test_cfg.score_thr = 0.99
    found = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert found.n == 6
    assert found.metrics["box_ap"] == found.metrics["mask_ap"] == 0
    assert found.intervals["box_ap"] == (0, 0)
    assert not found.outcomes.any()


def test_images_without_objects_count_and_limit_takes_a_seeded_subset(root, weights):
    assert _evaluate(_task(root, weights, limit=2)).n == 2
    _edit(root, lambda data: data.update(annotations=data["annotations"][:3]))
    assert _evaluate(_task(root, weights)).n == 6
    with pytest.raises(TaskError, match="none of the 1 images to judge on shows an object"):
        _task(root, weights, limit=1).data_id()


def test_calibration_images_are_drawn_by_seed_and_keep_their_aspect_ratio(root, weights, tmp_path):
    wide = Image.new("RGB", (300, 100), (200, 30, 30))
    for path in sorted((root / "train").glob("*.png"))[:4]:
        wide.save(path)
    task = _task(root, weights)
    loaded = task.load_model(_own(tmp_path, (1333, 800)))
    batches = task.calibration_batches(loaded, 8, 0)
    assert torch.cat(batches).shape == (8, 3, 800, 1344)
    again = task.calibration_batches(loaded, 8, 0)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], task.calibration_batches(loaded, 8, 1)[0])
    # 300 x 100 becomes 1333 x 444, 160 x 160 becomes 800 x 800: the rest is padding.
    extents = {
        (int(x.any(0).any(1).nonzero().max()) + 1, int(x.any(0).any(0).nonzero().max()) + 1)
        for x in batches[0]
    }
    assert extents == {(444, 1333), (800, 800)}
    with pytest.raises(TaskError, match="8 images to draw, the run asks for 9"):
        task.calibration_batches(loaded, 9, 0)


class _Kept(dict):
    """A place to share, in memory."""

    def put(self, key, tensors):
        self[key] = {name: tensor.clone() for name, tensor in tensors.items()}


def test_images_that_another_run_has_decoded_are_the_same_to_the_bit(root, weights, monkeypatch):
    task = _task(root, weights)
    loaded = task.load_model(MODEL)
    files = task.files()

    def samples():
        pictures = judged_pictures(files, range(6))
        dataset = PictureSet(pictures, evaluation_steps((300, 200), task.cache))
        return [dataset.prepare_data(i) for i in range(len(dataset))]

    alone, batches, judged = samples(), task.calibration_batches(loaded, 8, 0), _evaluate(task)
    task.cache = _Kept()
    samples(), task.calibration_batches(loaded, 8, 0), _evaluate(task)
    # No image is decoded from here on.
    monkeypatch.setattr("vit_ptq_bench.tasks.detection.datasets.imfrombytes", None)
    for mine, found in zip(alone, samples(), strict=True):
        assert torch.equal(mine["inputs"], found["inputs"])
        assert mine["data_samples"].metainfo == found["data_samples"].metainfo
    again = task.calibration_batches(loaded, 8, 0)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert np.array_equal(judged.outcomes, _evaluate(task).outcomes)
    path = files.images / sorted(p.name for p in files.images.iterdir())[0]
    Image.new("RGB", (160, 160)).save(path)
    with pytest.raises(TaskError, match="cannot be read as an image"):
        samples()  # changed, so it must be decoded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][0].update(category_id=99),
            "unknown category_id: annotations.0. .99.",
        ),
        (
            lambda d: d["annotations"][1].update(image_id=99),
            "unknown image_id: annotations.1. .99.",
        ),
        (
            lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4]),
            "bbox of negative width",
        ),
        (lambda d: d.pop("categories"), "'categories' of COCO's form is missing"),
        (lambda d: d.update(images=[]), "no images"),
        (lambda d: d["annotations"][0].pop("bbox"), "no bbox of four finite numbers"),
    ],
)
def test_wrong_annotations_are_named(root, weights, change, message):
    _edit(root, change)
    with pytest.raises(TaskError, match=message):
        _task(root, weights).data_id()


def test_missing_truncated_and_corrupt_files_are_named(root, weights):
    path = root / "annotations" / "val.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(TaskError, match="val.json: not readable as JSON.*truncated"):
        _task(root, weights).data_id()
    path.unlink()
    with pytest.raises(TaskError, match="val.json: no such annotation file"):
        _task(root, weights).data_id()
    path.write_text(text)
    (root / "val" / "000002.png").write_bytes(b"no image")
    with pytest.raises(TaskError, match="000002.png: cannot be read as an image"):
        _evaluate(_task(root, weights))
    (root / "val" / "000002.png").unlink()
    with pytest.raises(TaskError, match="lacks 1 of the 6 images.*000002.png"):
        _evaluate(_task(root, weights))
    assert _task(root, weights).training_images() == len(list((root / "train").iterdir()))
    shutil.rmtree(root / "train")
    task = _task(root, weights)
    with pytest.raises(TaskError, match="calibration needs training images"):
        task.training_images()
    with pytest.raises(TaskError, match="calibration needs training images"):
        task.calibration_batches(task.load_model(MODEL), 1, 0)


def test_a_config_that_is_no_detector_is_refused(root, weights, tmp_path):
    path = tmp_path / "classifier.py"
    path.write_text("model = dict(type='ImageClassifier', backbone=dict(type='SwinTransformer'))\n")
    with pytest.raises(TaskError, match="describes no detector"):
        _task(root, weights).load_model(str(path))
    path.write_text("model = dict(\n")
    with pytest.raises(TaskError, match="not a readable mmdet config"):
        _task(root, weights).load_model(str(path))
    with pytest.raises(TaskError, match="unknown detector 'mask'"):
        config_path("mask")


def test_a_config_file_of_the_users_own_builds_with_its_size(root, weights, tmp_path):
    path = tmp_path / "own.py"
    lines = [f"_base_ = {str(config_path(MODEL))!r}"]
    lines += ["test_pipeline = [dict(type='Resize', scale=(320, 320), keep_ratio=True)]"]
    path.write_text("\n".join(lines))
    task = _task(root, weights)
    loaded = task.load_model(str(path))
    assert task.calibration_batches(loaded, 1, 0)[0].shape == (1, 3, 320, 320)
    assert task.knows_model(str(path)) and not task.knows_model("own.py.missing")


@pytest.mark.parametrize("model", BUNDLED)
def test_a_bundled_architecture_takes_images_of_its_own_size(root, model, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_file(build_detector(read_config(config_path(model))).state_dict(), path)
    for image in sorted((root / "train").glob("*.png"))[:4]:
        Image.new("RGB", (640, 480), (200, 30, 30)).save(image)
    task = _task(root, path)
    loaded = task.load_model(model)
    assert torch.cat(task.calibration_batches(loaded, 8, 0)).shape == (8, 3, 160, 160)
    assert task.scale(read_config(config_path(model))) == BUNDLED_SCALE
    assert loaded.weights == task.weights_id(model) and loaded.weights.endswith(" at 160x160")
    assert loaded.notes[-1].startswith(
        "images are resized to 160 x 160 at most, the size of the architec"
    )


def test_a_size_that_no_config_names_is_told(root, weights, tmp_path):
    task = _task(root, weights)
    loaded = task.load_model(_own(tmp_path, None))
    assert task.calibration_batches(loaded, 1, 0)[0].shape == (1, 3, 800, 800)
    assert (
        "resized to 1333 x 800 at most" in loaded.notes[-1] and "names no size" in loaded.notes[-1]
    )
    assert task.load_model(_own(tmp_path, (320, 320))).notes == ()


def test_holding_out_is_refused_where_there_is_nothing_to_hold_out(root, weights):
    with pytest.raises(TaskError, match="task coco holds no training images out"):
        _task(root, weights, holdout=True)


def test_a_checkpoint_of_another_model_or_another_number_of_classes_is_refused(root, weights):
    with pytest.raises(TaskError, match="does not fit CascadeRCNN"):
        _task(root, weights).load_model("cascade_mask_rcnn_swin_mini")
    with pytest.raises(TaskError, match="needs its weights"):
        _task(root, None).load_model(MODEL)
    _edit(root, lambda data: data["categories"].append({"id": 11, "name": "none"}))
    with pytest.raises(TaskError, match="of another shape"):
        _task(root, weights).load_model(MODEL)


def test_a_training_checkpoint_is_converted_only_in_a_process_of_its_own(tmp_path, weights):
    from mmengine.logging import HistoryBuffer

    path, out = tmp_path / "epoch_12.pth", tmp_path / "epoch_12.safetensors"
    state = load_file(weights)
    buffer = HistoryBuffer([1.0], [1])
    torch.save({"state_dict": state, "message_hub": {"loss": buffer}}, path)
    with pytest.raises(TaskError, match="bench convert checkpoint .*--trust"):
        read_state_dict(path)
    identity = convert_checkpoint(path, out).identity
    assert all(torch.equal(state[name], value) for name, value in load_file(out).items())
    with safe_open(out, "pt") as file:
        assert file.metadata() == {
            "source": "epoch_12.pth",
            "source_sha256": identity,
            "notes": "[]",
        }
    torch.save({"epoch": 3}, path)
    with pytest.raises(TaskError, match="holds no state dict"):
        convert_checkpoint(path, out)


def test_an_image_that_is_replaced_after_the_plan_is_not_judged(root, weights):
    task = _task(root, weights, limit=1)
    task.data_id(), task.calibration_id(1, 0)
    loaded = task.load_model(MODEL)
    for path in [*(root / "val").iterdir(), *(root / "train").iterdir()]:
        Image.new("RGB", (160, 160), (9, 9, 9)).save(path)
    with pytest.raises(TaskError, match="png was changed while the sweep ran"):
        task.evaluate(loaded.module, loaded, torch.device("cpu"))
    with pytest.raises(TaskError, match="png was changed while the sweep ran"):
        task.calibration_batches(loaded, 1, 0)


def test_outputs_that_are_not_finite_are_an_error_and_no_figure(weights):
    task = TASKS.get("scenes")(TaskOptions(limit=1, checkpoint=weights))
    loaded = task.load_model(MODEL)
    for head, parameter, value in (
        ("rpn_head", "rpn_cls.bias", float("nan")),
        ("roi_head.bbox_head", "fc_cls.bias", float("nan")),
        ("roi_head.bbox_head", "fc_reg.bias", float("inf")),
        ("roi_head.mask_head", "conv_logits.bias", float("nan")),
    ):
        tensor = loaded.module.get_parameter(f"{head}.{parameter}")
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.fill_(value)
        with pytest.raises(TaskError, match=f"what {head} gives is not finite"):
            task.evaluate(loaded.module, loaded, torch.device("cpu"))
        with torch.no_grad():
            tensor.copy_(before)
    assert task.evaluate(loaded.module, loaded, torch.device("cpu")).n == 1
    assert not any(part._forward_hooks for part in loaded.module.modules())
