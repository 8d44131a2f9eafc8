import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from scipy.stats import binomtest

from vit_ptq_bench.tasks.api.selection import subset
from vit_ptq_bench.tasks.classification.evaluation import classify, wilson_interval


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
