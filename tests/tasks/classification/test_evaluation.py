import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from scipy.stats import binomtest

from vit_ptq_bench.tasks.api.selection import subset
from vit_ptq_bench.tasks.classification.evaluation import classify, wilson_interval
from vit_ptq_bench.tasks.errors import TaskError


@given(data=st.data(), n=st.integers(1, 5000))
def test_wilson_interval_equals_scipy(data, n):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert low == approx(100 * expected.low, abs=1e-6)
    assert high == approx(100 * expected.high, abs=1e-6)


def test_top1_and_top5_against_sorting():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(97, 12, generator=generator)
    labels = torch.randint(0, 12, (97,), generator=generator)
    rank = (logits > logits.gather(1, labels[:, None])).sum(1).numpy()
    batches = zip(logits.split(10), labels.split(10), strict=True)
    result = classify(torch.nn.Identity(), batches, torch.device("cpu"), 97, None)
    assert result.metrics["top1"] == approx(100 * (rank < 1).mean())
    assert result.metrics["top5"] == approx(100 * (rank < 5).mean())
    assert np.array_equal(result.outcomes, rank < 1)
    p = result.metrics["top1"] / 100
    assert result.standard_errors["top1"] == approx(100 * np.sqrt(p * (1 - p) / 97))


def test_fewer_than_five_classes_have_a_top5():
    logits, labels = torch.eye(3), torch.arange(3)
    result = classify(torch.nn.Identity(), [(logits, labels)], torch.device("cpu"), 3, None)
    assert result.metrics == {"top1": 100.0, "top5": 100.0}


@given(n=st.integers(1, 300), limit=st.one_of(st.none(), st.integers(1, 400)))
def test_subset_is_sorted_unique_and_as_long_as_asked(n, limit):
    chosen = subset(n, limit)
    assert len(chosen) == min(n, limit or n)
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, subset(n, limit))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error(value):
    logits, labels = torch.eye(6), torch.arange(6)
    logits[4, 0] = value  # the right class still has the largest of the others
    batches = zip(logits.split(3), labels.split(3), strict=True)
    with pytest.raises(
        TaskError, match="logits of image 5 are not finite, and 1 of 3 in its batch"
    ):
        classify(torch.nn.Identity(), batches, torch.device("cpu"), 6, None)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 10), torch.tensor([0, 1]), r"shape \(3, 10\) for 2 images"),
        (torch.zeros(2, 10, 4), torch.tensor([0, 1]), r"shape \(2, 10, 4\)"),
        (torch.zeros(2, 10), torch.tensor([0, 10]), "from 0 to 10, but the model has 10 outputs"),
        (torch.zeros(2, 10), torch.tensor([-1, 1]), "from -1 to 1"),
    ],
)
def test_logits_that_do_not_fit_the_labels_are_an_error(logits, labels, message):
    with pytest.raises(TaskError, match=message):
        classify(torch.nn.Identity(), [(logits, labels)], torch.device("cpu"), 2, None)
