"""The entropy of patch similarities against an integral by other means and against pairs taken one by one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.nn.functional import cosine_similarity

from vit_ptq_bench.methods.quantization.calibration.patch_similarity import (
    differential_entropy,
    patch_similarities,
)


def integrated(samples, bandwidth):
    """-int f log f of the exact kernel density, by adaptive quadrature."""

    def density(x):
        z = (x - samples) / bandwidth
        return float(np.exp(-0.5 * z * z).mean() / (bandwidth * np.sqrt(2 * np.pi)))

    def integrand(x):
        f = density(x)
        return -f * np.log(f) if f > 0 else 0.0

    ends = np.linspace(-1 - 9 * bandwidth, 1 + 9 * bandwidth, 41)
    return sum(quad(integrand, a, b, limit=200)[0] for a, b in pairwise(ends))


@pytest.mark.parametrize("bandwidth", [0.02, 0.05, 0.2])
@pytest.mark.parametrize(
    "samples",
    [
        np.random.default_rng(0).uniform(-1, 1, 200),
        np.random.default_rng(1).normal(0.9, 0.02, 200).clip(-1, 1),
        np.array([1.0] * 30 + [-1.0] * 10),
    ],
    ids=["spread", "alike", "ends"],
)
def test_the_entropy_is_the_integral(samples, bandwidth):
    found = differential_entropy(torch.from_numpy(samples)[None], bandwidth)
    assert float(found) == pytest.approx(integrated(samples, bandwidth), abs=0.02)


def test_of_equal_samples_it_is_that_of_one_gaussian():
    found = differential_entropy(torch.full((2, 50), 0.3, dtype=torch.float64), 0.1)
    exact = 0.5 * np.log(2 * np.pi * np.e * 0.1**2)
    assert found.tolist() == pytest.approx([exact, exact], abs=0.02)


def test_its_gradient_spreads_samples_that_are_alike():
    values = torch.tensor([[0.40, 0.45, 0.50, 0.55, 0.60]], requires_grad=True)
    differential_entropy(values, 0.1).sum().backward()
    left, right = values.grad[0, 0], values.grad[0, -1]
    assert left < 0 < right


def test_the_gradient_is_that_of_finite_differences():
    values = torch.from_numpy(np.random.default_rng(2).uniform(-0.8, 0.8, (1, 40)))
    values.requires_grad_()
    differential_entropy(values, 0.2).sum().backward()
    for place in range(0, 40, 7):
        moved = values.detach().numpy()[0].copy()
        moved[place] += 0.05
        above = integrated(moved, 0.2)
        moved[place] -= 0.1
        slope = (above - integrated(moved, 0.2)) / 0.1
        assert float(values.grad[0, place]) == pytest.approx(
            slope, rel=0.1, abs=3e-3
        )  # linear shares


def test_each_image_has_all_pairs_of_its_own_windows():
    outputs = torch.randn(
        6, 5, 8, generator=torch.Generator().manual_seed(0)
    )  # 2 images, 3 windows
    found = patch_similarities(outputs, images=2)
    assert found.shape == (2, 3 * 5 * 4)
    for image in range(2):
        pairs = [
            float(cosine_similarity(window[i], window[j], dim=0))
            for window in outputs[3 * image : 3 * image + 3]
            for i in range(5)
            for j in range(5)
            if i != j
        ]
        assert sorted(found[image].tolist()) == pytest.approx(sorted(pairs), abs=1e-5)
