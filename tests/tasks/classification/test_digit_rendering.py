import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.api.task import TaskOptions
from vit_ptq_bench.tasks.classification.digit_rendering import (
    CLASSES,
    holdout_set,
    render,
    source_pools,
    test_set,
    training_pools,
)
from vit_ptq_bench.tasks.classification.normalisation import digit_images
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES
from vit_ptq_bench.tasks.errors import TaskError


def test_train_and_test_digits_are_disjoint_and_complete():
    train, test = source_pools()
    assert not set(train.indices) & set(test.indices)
    assert len(train.indices) + len(test.indices) == 1797
    fit, validation = training_pools()
    assert set(fit.indices) | set(validation.indices) == set(train.indices)
    assert not set(fit.indices) & set(validation.indices)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 60), clutter=st.floats(0, 1))
def test_rendering_is_a_function_of_the_seed(seed, n, clutter):
    pool = source_pools()[0]
    first = render(pool, n, np.random.default_rng(seed), clutter)
    again = render(pool, n, np.random.default_rng(seed), clutter)
    assert first[0].shape == (n, 32, 32, 3) and first[0].dtype == np.uint8
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    counts = np.bincount(first[1], minlength=CLASSES)
    assert counts.max() - counts.min() <= 1


def test_rendering_in_chunks_agrees_with_what_is_drawn(monkeypatch):
    pictures, labels = test_set()
    assert pictures.shape == (2000, 32, 32, 3)
    assert (np.bincount(labels) == 200).all()


def test_clutter_makes_pictures_busier():
    pool = source_pools()[0]
    plain, hard = (
        render(pool, 200, np.random.default_rng(0), c)[0].astype(float) for c in (0.0, 1.0)
    )
    corner = lambda pictures: pictures[:, :3, :3].std(axis=(1, 2)).mean()  # noqa: E731
    assert corner(plain) < 1 < corner(hard)


def _task(**options):
    return TASKS.get("digits")(TaskOptions(**options))


def test_calibration_is_seeded_and_split_into_batches():
    task = _task(batch_size=5)
    loaded = type("Loaded", (), {"name": "vit_mini"})()
    first, again, other = (task.calibration_batches(loaded, 12, seed) for seed in (0, 0, 1))
    assert [len(batch) for batch in first] == [5, 5, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].abs().max() <= 1


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_bundled_model_reaches_its_reference(name):
    task = _task()
    loaded = task.load_model(name)
    result = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    assert abs(result.metrics["top1"] - loaded.reference) <= 0.1
    assert result.metrics["top1"] >= 95
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


def test_holdout_judges_on_training_digits_that_calibration_cannot_draw():
    fit, held_out = training_pools()
    task = TASKS.get("digits")(TaskOptions(holdout=True, limit=50))
    assert task.data_id() != TASKS.get("digits")(TaskOptions()).data_id()
    drawn = torch.cat(task.calibration_batches(task.load_model("vit_mini"), 20, seed=4))
    expected, _ = render(fit, 20, np.random.default_rng([1, 4]))
    assert torch.equal(drawn, digit_images(expected))
    pictures, labels = holdout_set()
    again, digits = render(held_out, 2000, np.random.default_rng([3, 0]))
    assert np.array_equal(pictures, again) and np.array_equal(labels, digits)
    loaded = task.load_model("vit_mini")
    assert loaded.reference is None  # the gate's figure is that of the test pictures
    assert task.evaluate(loaded.module, loaded, torch.device("cpu")).n == 50
