"""The ImageNet task on small trees of generated JPEGs, with an untrained model from a file."""

import os
from contextlib import suppress

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.api.task import LoadedModel
from vit_ptq_bench.tasks.classification.contents import Contents
from vit_ptq_bench.tasks.classification.image_cache import CachedImages
from vit_ptq_bench.tasks.classification.label_sets import IMAGENET_FILE
from vit_ptq_bench.tasks.errors import TaskError

MODEL = "vit_tiny_patch16_224"

CPU = torch.device("cpu")
IDS = IMAGENET_FILE.read_text().split()


def _image(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Six validation images of six classes, nine training images."""
    for i, label in enumerate((0, 1, 7, 500, 998, 999)):
        _image(tmp_path / "val" / IDS[label] / f"v{i}.JPEG", i)
    for i in range(9):
        _image(tmp_path / "train" / IDS[i] / f"t{i}.JPEG", 100 + i)
    return tmp_path


def _task(**options):
    return TASKS.get("imagenet")(TaskOptions(**options))


def test_image_folder_evaluates_and_calibrates(tree, checkpoint):
    task = _task(data_dir=tree, checkpoint=checkpoint, batch_size=4)
    loaded = task.load_model(MODEL)
    result = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert result.n == 6 and set(result.metrics) == {"top1", "top5"}
    # Independently: the same images by hand.
    transform = timm.data.create_transform(
        (3, 224, 224), crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"
    )
    files = sorted((tree / "val").glob("*/*.JPEG"))
    with torch.no_grad():
        logits = loaded.module(torch.stack([transform(Image.open(f)) for f in files]))
    labels = torch.tensor([IDS.index(f.parent.name) for f in files])
    assert np.array_equal(result.outcomes, (logits.argmax(1) == labels).numpy())
    batches = task.calibration_batches(loaded, 5, seed=0)
    assert [tuple(b.shape) for b in batches] == [(4, 3, 224, 224), (1, 3, 224, 224)]
    again = task.calibration_batches(loaded, 5, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_flat_images_with_labels_by_name_or_in_order(tree, tmp_path, checkpoint):
    flat = tmp_path / "flat"
    for i in range(4):
        _image(flat / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", i)
    by_name, in_order = tmp_path / "names.txt", tmp_path / "order.txt"
    rows = [f"ILSVRC2012_val_{i:08d}.JPEG {label}" for i, label in enumerate((3, 1, 999, 0))]
    by_name.write_text("\n".join(reversed(rows)))
    in_order.write_text("3\n1\n999\n0\n")
    outcomes = []
    for labels in (by_name, in_order):
        task = _task(data_dir=flat, val_labels=labels, checkpoint=checkpoint)
        assert [label for _, label in task._chosen] == [3, 1, 999, 0]
        loaded = task.load_model(MODEL)
        outcomes.append(task.evaluate(loaded.module, loaded, torch.device("cpu")).outcomes)
    assert np.array_equal(*outcomes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "labels 2 images"),
        ("a.JPEG 1\nb.JPEG 2\nc.JPEG 3\nd.JPEG 4", "no label for"),
        ("1\n2\nn01440764\n3", "line 3: .*mixes WordNet ids with indices"),
        ("1 2 3\n1\n2\n3", "line 1"),
    ],
)
def test_bad_ground_truth_files(tmp_path, text, message):
    for i in range(4):
        _image(tmp_path / "val" / f"v{i}.JPEG", i)
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises(TaskError, match=message):
        _task(data_dir=tmp_path, val_labels=labels).data_id()


def test_missing_and_empty_folders(tmp_path, checkpoint):
    with pytest.raises(TaskError, match="BENCH_IMAGENET_DATA_DIR"):
        _task(checkpoint=checkpoint).data_id()
    with pytest.raises(TaskError, match="no such data folder"):
        _task(data_dir=tmp_path / "none").data_id()
    with pytest.raises(TaskError, match="no folder val or validation"):
        _task(data_dir=tmp_path).data_id()
    (tmp_path / "val").mkdir()
    with pytest.raises(TaskError, match="--val-labels"):
        _task(data_dir=tmp_path).data_id()
    (tmp_path / "val" / "n01").mkdir()
    with pytest.raises(TaskError, match="no images found"):
        _task(data_dir=tmp_path).data_id()


def test_holdout_halves_the_training_images(tree, checkpoint):
    task = _task(data_dir=tree, checkpoint=checkpoint, holdout=True)
    loaded = task.load_model(MODEL)
    judged = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert judged.n == 4
    assert task.data_id() != _task(data_dir=tree, checkpoint=checkpoint).data_id()
    free = torch.cat(task.calibration_batches(loaded, 5, 0))
    with pytest.raises(TaskError, match="has 5 images to draw, the run asks for 6"):
        task.calibration_batches(loaded, 6, 0)
    everything = _task(data_dir=tree, checkpoint=checkpoint).calibration_batches(loaded, 9, 0)
    drawn = {image.numpy().tobytes() for image in free}
    assert len(drawn) == 5 and drawn < {i.numpy().tobytes() for i in torch.cat(everything)}


def test_corrupt_image_and_too_few_images(tree, checkpoint):
    task = _task(data_dir=tree, checkpoint=checkpoint)
    loaded = task.load_model(MODEL)
    with pytest.raises(TaskError, match="has 9 images to draw, the run asks for 10"):
        task.calibration_batches(loaded, 10, 0)
    broken = tree / "val" / IDS[7] / "v2.JPEG"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(TaskError, match=r"v2\.JPEG: corrupt"):
        _task(data_dir=tree, checkpoint=checkpoint).evaluate(
            loaded.module, loaded, torch.device("cpu")
        )


def test_the_plan_is_told_how_many_images_there_are_to_draw(tree, checkpoint):
    assert _task(data_dir=tree, checkpoint=checkpoint).training_images() == 9
    halved = _task(data_dir=tree, checkpoint=checkpoint, holdout=True)
    available = halved.training_images()
    assert available == 9 - halved.evaluated_images()
    with pytest.raises(TaskError, match=f"has {available} images to draw"):
        halved.calibration_batches(halved.load_model(MODEL), available + 1, 0)


def test_data_without_training_images_can_only_be_evaluated(tree, checkpoint):
    (tree / "train").rename(tree / "elsewhere")
    task = _task(data_dir=tree, checkpoint=checkpoint)
    assert task.data_id().startswith("sha256:")
    with pytest.raises(TaskError, match="calibration needs training images"):
        task.training_images()
    with pytest.raises(TaskError, match="calibration needs training images"):
        task.calibration_batches(task.load_model(MODEL), 1, 0)


def test_names_and_identities(tree, checkpoint):
    task = _task(data_dir=tree)
    assert task.weights_id(MODEL) == f"timm:{MODEL}.augreg_in21k_ft_in1k"
    assert _task(data_dir=tree, checkpoint=checkpoint).weights_id(MODEL).startswith("sha256:")
    with pytest.raises(TaskError, match=r"did you mean .*vit_tiny_patch16_224"):
        task.weights_id("vit_tiny_patch16_225")
    before = task.data_id()
    _image(tree / "val" / IDS[1] / "w.JPEG", 50)
    assert _task(data_dir=tree).data_id() != before
    assert "deit_small_patch16_224.fb_in1k" in task.model_names()


def test_pretrained_weights_that_cannot_be_had(tree, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(TaskError, match="no network.*--checkpoint"):
        _task(data_dir=tree).load_model(MODEL)


class _Kept(dict):
    """A place to share, in memory."""

    def put(self, key, tensors):
        self[key] = {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("exact", [True, False])
def test_images_that_another_run_has_decoded_are_the_same_to_the_bit(
    tree, checkpoint, monkeypatch, exact
):
    task = _task(data_dir=tree, checkpoint=checkpoint, batch_size=4)
    loaded = task.load_model(MODEL)
    alone = task.calibration_batches(loaded, 6, seed=1)
    first = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    task.cache = _Kept()
    if not exact:  # a transform whose floats are no bytes
        normalised = CachedImages._normalised
        monkeypatch.setattr(CachedImages, "_normalised", lambda s, x: normalised(s, x) + 0.5)
    task.calibration_batches(loaded, 6, seed=1)
    task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert {name for kept in task.cache.values() for name in kept} == {
        "bytes" if exact else "floats"
    }
    monkeypatch.setattr(
        "vit_ptq_bench.tasks.classification.decoding.Image.open", None
    )  # no file is opened from here on
    again = task.calibration_batches(loaded, 6, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))
    second = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert np.array_equal(first.outcomes, second.outcomes)


@pytest.mark.filterwarnings(
    "ignore:.pin_memory. argument is set:UserWarning"
)  # there may be no GPU
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_asked_for_in_pinned_memory(tree, checkpoint, monkeypatch, device):
    """Whether it gets as far as computing does not matter: the model is on the CPU, a GPU perhaps nowhere."""
    asked = []

    def noted(*words, pin_memory, **more):
        asked.append(pin_memory)
        return DataLoader(*words, pin_memory=pin_memory, **more)

    monkeypatch.setattr("vit_ptq_bench.tasks.classification.image_cache.DataLoader", noted)
    task = _task(data_dir=tree, checkpoint=checkpoint, batch_size=4)
    loaded = task.load_model(MODEL)
    with suppress(*(() if device == "cpu" else (RuntimeError, AssertionError))):
        task.evaluate(loaded.module, loaded, torch.device(device))
    assert asked == [device == "cuda"]


def test_only_batches_that_are_missing_are_decoded(tree, checkpoint, monkeypatch):
    task = _task(data_dir=tree, checkpoint=checkpoint, batch_size=2)
    loaded = task.load_model(MODEL)
    alone = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    task.cache = _Kept()
    task.evaluate(loaded.module, loaded, torch.device("cpu"))
    keys = list(task.cache)
    assert len(keys) > 2
    del task.cache[keys[1]]
    opened = []
    real = Image.open
    monkeypatch.setattr(
        "vit_ptq_bench.tasks.classification.decoding.Image.open",
        lambda file, **words: opened.append(file) or real(file, **words),
    )
    # One more goes between the first look and its turn.
    get = task.cache.get
    monkeypatch.setattr(
        _Kept, "get", lambda self, key: None if key == keys[2] else get(key), raising=False
    )
    again = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert len(opened) == 4 and np.array_equal(alone.outcomes, again.outcomes)


def test_an_image_that_changes_after_it_was_planned_is_refused(tree, checkpoint):
    options = {"data_dir": tree, "checkpoint": checkpoint}
    planned = _task(**options)
    planned.cache = _Kept()
    loaded = planned.load_model(MODEL)
    data, calibration = planned.data_id(), planned.calibration_id(9, 0)
    before = torch.cat(planned.calibration_batches(loaded, 9, seed=0))
    for path in tree.glob("*/*/*"):
        _image(path, 999)
    # What an earlier run has decoded are the images that were planned.
    assert torch.equal(before, torch.cat(planned.calibration_batches(loaded, 9, seed=0)))
    planned.cache = None
    with pytest.raises(TaskError, match=r"t\d\.JPEG was changed while the sweep ran"):
        planned.calibration_batches(loaded, 9, seed=0)
    with pytest.raises(TaskError, match=r"v\d\.JPEG was changed while the sweep ran"):
        planned.evaluate(loaded.module, loaded, torch.device("cpu"))
    anew = _task(**options)
    assert anew.data_id() != data and anew.calibration_id(9, 0) != calibration
    assert not torch.equal(before, torch.cat(anew.calibration_batches(loaded, 9, seed=0)))


def test_identities_are_those_of_the_images_that_count(tree):
    def ids(**options):
        task = _task(data_dir=tree, **options)
        return task.data_id(), task.calibration_id(3, 0), task.data_notes()

    first = ids(limit=3)
    judged = [path for path, _ in _task(data_dir=tree, limit=3)._chosen]
    spare = next(path for path in (tree / "val").glob("*/*") if path not in judged)
    _image(spare, 77)
    assert ids(limit=3) == first
    old = judged[0].read_bytes()
    other = bytearray(old)
    other[-10] ^= 1  # same name, size and time
    status = judged[0].stat()
    judged[0].write_bytes(bytes(other))
    os.utime(judged[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ids(limit=3)[0] != first[0]
    judged[0].write_bytes(old)
    assert ids(limit=3) == first
    drawn = _task(data_dir=tree)._drawn(3, 0)
    _image(drawn[0], 78)
    changed = ids(limit=3)
    assert changed[0] == first[0] and changed[1] != first[1]
    _image(drawn[0].with_name("more.JPEG"), 79)
    assert ids(limit=3)[0] != first[0]
    assert _task(data_dir=tree).calibration_id(100, 0) is None
    assert first[2] == ("6 images in val: 6 class folders, WordNet ids",)


def test_a_model_of_other_classes_is_refused_before_it_is_calibrated(tree, tmp_path, checkpoint):
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(IDS[:999]))
    with pytest.raises(TaskError, match=f"{IDS[999]}: .* is no name of the class map"):
        _task(data_dir=tree, class_map=names).data_id()
    (tree / "val" / IDS[999] / "v5.JPEG").unlink()
    (tree / "val" / IDS[999]).rmdir()
    task = _task(data_dir=tree, class_map=names, checkpoint=checkpoint)
    assert "class names" in task.data_notes()[0]
    with pytest.raises(TaskError, match="its head has 1000 outputs, --class-map names 999 classes"):
        task.load_model(MODEL)
    other = timm.create_model(MODEL)
    with pytest.raises(TaskError, match="of 999 classes, but vit_tiny.* has 1000 outputs"):
        task.evaluate(other, LoadedModel(MODEL, other), CPU)


def test_a_model_of_other_classes_is_built_as_the_class_map_says(tree, tmp_path):
    for folder in sorted((tree / "val").iterdir()):
        folder.rename(folder.with_name(f"kind_{folder.name[-1]}"))
    names = tmp_path / "classes.txt"
    kinds = sorted(folder.name for folder in (tree / "val").iterdir())
    names.write_text("\n".join(reversed(kinds)))
    model = timm.create_model(MODEL, num_classes=len(kinds))
    save_file(model.state_dict(), tmp_path / "tuned.safetensors")
    task = _task(data_dir=tree, class_map=names, checkpoint=tmp_path / "tuned.safetensors")
    loaded = task.load_model(MODEL)
    result = task.evaluate(loaded.module, loaded, CPU)
    assert result.n == 6 and loaded.module.num_classes == len(kinds)
    assert [label for _, label in task._chosen] == [
        len(kinds) - 1 - kinds.index(path.parent.name) for path, _ in task._chosen
    ]


@pytest.fixture
def flat(tmp_path):
    """Four flat images of classes 0 to 2, as indices in a file, and weights of a model of five classes."""
    for i in range(4):
        _image(tmp_path / "flat" / "val" / f"v{i}.JPEG", i)
    (tmp_path / "labels.txt").write_text("0\n1\n2\n2\n")
    save_file(timm.create_model(MODEL, num_classes=5).state_dict(), tmp_path / "five.safetensors")
    return {"data_dir": tmp_path / "flat", "val_labels": tmp_path / "labels.txt"}


def test_indices_and_weights_of_a_number_of_classes_that_is_given(flat, tmp_path):
    own = {**flat, "checkpoint": tmp_path / "five.safetensors"}
    with pytest.raises(TaskError, match="as of 3 classes, but .* 5 outputs.*--num-classes"):
        _task(**own).load_model(MODEL)
    task = _task(**own, num_classes=5)
    loaded = task.load_model(MODEL)
    assert loaded.module.num_classes == 5
    assert task.evaluate(loaded.module, loaded, CPU).n == 4
    assert task.data_id() == _task(**own).data_id()
    assert "indices from 0 of 5 classes, as --num-classes says" in task.data_notes()[0]
    with pytest.raises(
        TaskError, match="safetensors: its head has 5 outputs, --num-classes says 6"
    ):
        _task(**own, num_classes=6).load_model(MODEL)


def test_the_number_of_classes_tells_that_few_indices_are_of_a_large_model(flat, checkpoint):
    own = {**flat, "checkpoint": checkpoint}
    with pytest.raises(TaskError, match="as of 3 classes, but .* 1000 outputs.*--num-classes"):
        _task(**own).load_model(MODEL)
    assert _task(**own, num_classes=1000).load_model(MODEL).module.num_classes == 1000


def test_a_number_of_classes_that_labels_contradict_is_refused(tree, flat, checkpoint):
    with pytest.raises(TaskError, match="of 1000 classes, but --num-classes is 10; leave"):
        _task(data_dir=tree, num_classes=10).data_id()
    assert _task(data_dir=tree, num_classes=1000).data_id() == _task(data_dir=tree).data_id()
    with pytest.raises(TaskError, match="label 2, but --num-classes is 2: labels are 0 to 1"):
        _task(**flat, num_classes=2).data_id()
    other = timm.create_model(MODEL, num_classes=7)
    with pytest.raises(
        TaskError, match="--num-classes says: the labels are of 5 classes, but .* 7"
    ):
        _task(**flat, num_classes=5).evaluate(other, LoadedModel(MODEL, other), CPU)


def test_hashing_for_long_is_said_and_done_once(tree, monkeypatch, caplog):
    monkeypatch.setattr("vit_ptq_bench.tasks.classification.contents.PATIENCE_SECONDS", 0.0)
    contents = Contents()
    paths = sorted(tree.glob("*/*/*"))
    first = contents.of(paths)
    assert "15 of 15" in caplog.text
    caplog.clear()
    assert contents.of(paths) == first and caplog.text == ""
