"""Measured curvatures against their definitions: numpy least squares, dense algebra, exact Hessians."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.reconstruction.curvature import (
    RIDGE,
    FisherApproximation,
    LeastSquaresHessian,
    PerturbationHessian,
    least_squares,
    mean_sizes,
    perturbed,
    perturbed_by_constant,
)
from vit_ptq_bench.methods.quantization.reconstruction.losses import Batch, FeatureError
from vit_ptq_bench.methods.quantization.reconstruction.probe import TEMPERATURE, Probe
from vit_ptq_bench.methods.quantization.reconstruction.units import features_of, run_all

IMAGES, TOKENS, CHANNELS, CLASSES = 24, 2, 3, 5


def _probe(norm=False, spread=0.3):
    """A unit that adds an error to each image, and a rest that mixes tokens and channels; float64."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    exact = draw(IMAGES, TOKENS, CHANNELS)
    errors = spread * draw(IMAGES, TOKENS, CHANNELS)
    first, second = draw(TOKENS * CHANNELS, 8), draw(8, CLASSES)

    def rest(x, chosen=None):
        x = F.layer_norm(x, (CHANNELS,)) if norm else x
        return torch.tanh(x.flatten(1) @ first) @ second

    numbers = torch.arange(IMAGES)

    def run(
        x,
    ):  # the exact input is the target; the quantized prefix marks its images by a shift of 100
        return x + errors[: len(x)] if len(x) == IMAGES else x

    return Probe(
        run=run,
        exact=exact,
        quantized=exact,
        target=exact,
        prediction=rest(exact),
        rest=rest,
        parts=[numbers],
        drop=lambda on: None,
        generator=generator,
        device=torch.device("cpu"),
    ), errors


def _gradients(probe, output):
    """Gradient of each image's divergence, one image at a time."""
    found = []
    for target, image in zip(probe.prediction, output, strict=True):
        x = image[None].clone().requires_grad_()
        p, q = ((y / TEMPERATURE).log_softmax(-1) for y in (target[None], probe.rest(x)))
        (p.exp() * (p - q)).sum().backward()
        found.append(x.grad.flatten())
    return torch.stack(found).numpy()


def test_least_squares_hessian_is_numpys_solution():
    probe, errors = _probe()
    diagonal, direction = least_squares(probe)
    g, e = _gradients(probe, probe.exact + errors), errors.flatten(1).numpy()
    columns = [np.linalg.lstsq(e[:, [i]], g[:, i], rcond=None)[0][0] for i in range(e.shape[1])]
    np.testing.assert_allclose(diagonal, np.maximum(columns, 0), rtol=1e-8, atol=1e-12)
    size = np.sqrt(np.maximum((e * g).sum(1), 0))
    solved = np.linalg.lstsq(size[:, None], g, rcond=None)[0][0]
    np.testing.assert_allclose(direction, solved, rtol=1e-8)
    other = torch.randn(errors.shape, generator=torch.Generator().manual_seed(9)).to(errors)
    for rank_one in (True, False):
        loss = LeastSquaresHessian(rank_one=rank_one).measured(probe)

        def by_hand(error, rank_one=rank_one):
            flat = error.flatten(1).numpy()
            value = (flat**2 @ diagonal.numpy()).mean() / 2
            return value + rank_one * ((flat @ direction.numpy()) ** 2).mean() / 2

        for error in (2 * errors, other):
            batch = Batch(probe.exact + error, probe.exact, probe.rest, probe.prediction)
            expected = by_hand(error) / by_hand(errors)  # of the errors it was measured on: 1
            assert float(loss(batch)) == pytest.approx(expected, rel=1e-9)


def test_fisher_approximation_is_the_dense_one_and_grows_by_a_row_at_each_refresh():
    probe, errors = _probe()
    other, _ = _probe(spread=0.1)
    loss = FisherApproximation(rank=2).measured(probe).measured(other)
    rows = [mean_sizes(p) for p in (probe, other)]
    g, e = _gradients(probe, probe.exact + errors), errors.flatten(1).numpy()
    np.testing.assert_allclose(rows[0][0], np.abs(g).mean(0), rtol=1e-8)
    np.testing.assert_allclose(rows[0][1], np.abs(e).mean(0), rtol=1e-12)
    big_g, big_e = (np.stack([row[i].numpy() for row in rows]) for i in (0, 1))
    moment = big_e @ big_e.T
    moment += RIDGE * np.eye(2) * np.trace(moment) / 2
    fisher = big_g.T @ np.linalg.inv(moment) @ big_g  # dense, [d, d]

    def terms(error):
        flat = error.flatten(1).numpy()
        return (
            np.einsum("ni,ij,nj->n", np.abs(flat), fisher, np.abs(flat)).mean(),
            (flat**2 @ big_g.mean(0)).mean(),
        )

    now = 0.7 * errors
    first, second = (a / b for a, b in zip(terms(now), terms(errors / 3), strict=True))
    batch = Batch(probe.exact + now, probe.exact, probe.rest, probe.prediction)
    assert float(loss(batch)) == pytest.approx(first + second, rel=1e-6)
    assert len(loss.gradients) == 2 and loss.refreshes == 2


def test_random_signs_give_the_hessians_diagonal():
    probe, _ = _probe(norm=True)
    found = perturbed(probe, probes=400, step=1e-3)
    diagonals = []
    for target, image in zip(probe.prediction, probe.exact, strict=True):

        def divergence(x, target=target):
            p, q = ((y / TEMPERATURE).log_softmax(-1) for y in (target[None], probe.rest(x[None])))
            return (p.exp() * (p - q)).sum()

        hessian = torch.autograd.functional.hessian(divergence, image)
        diagonals.append(hessian.reshape(TOKENS * CHANNELS, -1).diagonal())
    exact = torch.stack(diagonals).mean(0)
    torch.testing.assert_close(found, exact, rtol=0.15, atol=0.05 * float(exact.mean()))
    assert np.corrcoef(found, exact)[0, 1] > 0.98


def test_a_constant_on_all_channels_is_removed_by_the_layer_norm():
    """The trap of the released perturbation: exactly nothing is left of it, but for rounding."""
    probe, _ = _probe(norm=True)
    assert float(perturbed_by_constant(probe).max()) < 1e-16
    assert float(perturbed(probe, 8, 1e-3).max()) > 1e-6
    plain, _ = _probe(norm=False)
    assert float(perturbed_by_constant(plain).max()) > 1e-11
    errors = 0.1 * torch.ones_like(probe.exact)
    batch = Batch(probe.exact + errors, probe.exact, probe.rest, probe.prediction)
    assert torch.isfinite(PerturbationHessian(signs="constant").measured(plain)(batch))


@torch.no_grad()
def test_penultimate_feature_is_what_the_classifier_reads(tiny, images):
    model = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    segments = model.structure.segments
    embedded = segments[0].run(images)
    rest = partial(run_all, segments[1:])
    found = features_of(model.structure, lambda: rest(embedded))
    tokens = tiny.forward_features(images)
    if hasattr(tiny, "head_dist"):
        expected = torch.cat([tokens[:, 0], tokens[:, 1]], dim=-1)
    else:
        expected = tiny.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    moved = embedded + 0.1
    batch = Batch(
        output=moved,
        target=embedded,
        rest=rest,
        prediction=rest(embedded),
        features=expected,
        features_of=lambda x: features_of(model.structure, lambda: rest(x)),
    )
    by_hand = features_of(model.structure, lambda: rest(moved)) - expected
    assert float(FeatureError()(batch)) == pytest.approx(float(by_hand.square().mean()), rel=1e-5)
    assert not any(op._forward_pre_hooks for op in model.operations)
