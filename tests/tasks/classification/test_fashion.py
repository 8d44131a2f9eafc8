"""The bundled pictures and the task that is made of them."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.classification.fashion_pictures import (
    CLASSES,
    SLICE_SIZES,
    SLICES,
    fashion_slice,
)
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES
from vit_ptq_bench.tasks.errors import TaskError


def _task(**options):
    return TASKS.get("fashion")(TaskOptions(**options))


def _rows(images):
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("name", SLICE_SIZES)
def test_every_class_has_as_many_pictures_in_grey(name):
    part = fashion_slice(name)
    n = SLICE_SIZES[name]
    assert part.images.shape == (n, 28, 28, 3) and part.images.dtype == np.uint8
    assert (np.bincount(part.labels) == n // CLASSES).all()
    assert np.array_equal(part.images[..., 0], part.images[..., 2])
    assert 50 < part.images.mean() < 100  # Fashion-MNIST's mean is 73


def test_no_picture_is_in_two_slices():
    judging, drawn, held_out = (_rows(fashion_slice(name).images) for name in SLICE_SIZES)
    assert not (judging & drawn) | (judging & held_out) | (drawn & held_out)


def test_the_pictures_come_with_their_licence():
    text = SLICES.with_name("FASHION_MNIST_LICENSE").read_text()
    assert "MIT" in text and "Zalando SE" in text
    assert SLICES.stat().st_size < 4e6


def test_calibration_is_seeded_and_split_into_batches():
    task = _task(batch_size=5)
    loaded = type("Loaded", (), {"name": "vit_mini"})()
    first, again, other = (task.calibration_batches(loaded, 12, seed) for seed in (0, 0, 1))
    assert [len(batch) for batch in first] == [5, 5, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape[1:] == (3, 28, 28) and first[0].abs().max() <= 1
    with pytest.raises(TaskError, match="has 2000 images to draw, the run asks for 2001"):
        task.calibration_batches(loaded, 2001, 0)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_bundled_model_reaches_its_reference(name):
    task = _task()
    loaded = task.load_model(name)
    result = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert abs(result.metrics["top1"] - loaded.reference) <= 0.1
    assert result.metrics["top1"] >= 85
    assert result.outcomes.shape == (2000,)
    assert 100 * result.outcomes.mean() == pytest.approx(result.metrics["top1"])


def test_limit_is_a_subset_of_the_whole():
    task, limited = _task(), _task(limit=50)
    loaded = task.load_model("swin_mini")
    whole = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    seen = []
    part = limited.evaluate(
        loaded.module, loaded, torch.device("cpu"), lambda done, total: seen.append((done, total))
    )
    assert part.n == 50 and seen[-1] == (50, 50)
    chosen = np.sort(np.random.default_rng(0).permutation(2000)[:50])
    assert np.array_equal(part.outcomes, whole.outcomes[chosen])


def test_unknown_model_is_named():
    with pytest.raises(TaskError, match="'vit_mimi'.*vit_mini"):
        _task().load_model("vit_mimi")


def test_holdout_judges_on_pictures_that_neither_training_nor_calibration_had():
    task = _task(holdout=True, limit=1000)
    assert task.data_id() != _task().data_id()
    loaded = task.load_model("vit_mini")
    assert loaded.reference is None  # the gate's figure is that of the test pictures
    drawn = torch.cat(task.calibration_batches(loaded, 20, seed=4))
    pixels = ((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert _rows(pixels) <= _rows(fashion_slice("training").images)
    right = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert right.n == 1000 and 80 < right.metrics["top1"] < 98


def test_operations_are_those_of_the_products_by_hand():
    tokens, width = 50, 192  # 7 x 7 patches and the class token
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
    whole = 8 * block + 49 * width * 4 * 4 * 3 + width * CLASSES
    assert _task().operations("vit_mini") == whole
