"""Rules that join the answers of folds and chunks, against numpy and over many draws."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.calibration.range_rules import (
    best_percentile_rule,
    histogram_shrink_rule,
    shrink_rule,
)
from vit_ptq_bench.methods.quantization.calibration.stable_rules import (
    StableRule,
    chunked_percentile_rule,
    geometric_median,
    grid_ends,
    percentile_grid,
)
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer


def _found(rule, x, key="qkv.input", bits=4, symmetric=False, granularity="tensor", axis=None):
    quantizer = UniformQuantizer(TensorSpec(bits, granularity, symmetric), "x", axis)
    rule(Site("x", key, quantizer, None), x)
    return quantizer


def _heavy(seed, images=32):
    """Student's t of two degrees of freedom: the variance does not exist."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(images, 100, 8, generator=generator)
    return normal / torch.randn(images, 100, 8, 2, generator=generator).square().mean(-1).sqrt()


def test_the_geometric_median_has_the_least_summed_distance():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(9, 3, 2)), np.full((2, 3, 2), 80.0)])
    found = geometric_median(torch.tensor(points)).numpy()
    for group in range(3):
        of = lambda p, g=group: np.linalg.norm(points[:, g] - p, axis=1).sum()  # noqa: E731
        least = of(found[group])
        for step in rng.normal(size=(200, 2)) * 0.05:
            assert of(found[group] + step) >= least - 1e-6
        assert np.abs(found[group]).max() < 2  # two far points of eleven move it little
    same = torch.ones(5, 2, 2)
    torch.testing.assert_close(geometric_median(same), same[0])


@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_vary_less_over_draws_than_the_pooled_one(symmetric):
    scales = {"pooled": [], "stable": []}
    for draw in range(20):
        x = _heavy(draw)
        for name, rule in (("pooled", histogram_shrink_rule()), ("stable", StableRule())):
            scales[name].append(float(_found(rule, x, symmetric=symmetric).scale))
    variances = {name: np.var(found) for name, found in scales.items()}
    relative = {name: np.std(found) / np.mean(found) for name, found in scales.items()}
    assert variances["stable"] < variances["pooled"] / 4
    assert relative["stable"] < relative["pooled"]


def test_one_unusual_image_does_not_decide_and_agreement_is_kept():
    usual = torch.randn(32, 50, 8, generator=torch.Generator().manual_seed(1))
    unusual = usual.clone()
    unusual[5] *= 60
    rule = StableRule()
    of = {name: _found(rule, x) for name, x in (("usual", usual), ("unusual", unusual))}
    pooled = [_found(histogram_shrink_rule(), x) for x in (usual, unusual)]
    assert float(pooled[1].scale) > 4 * float(pooled[0].scale)
    assert float(of["unusual"].scale) < 1.5 * float(pooled[0].scale)
    assert float(of["usual"].scale) == pytest.approx(float(pooled[0].scale), rel=0.1)
    assert rule.spreads["x"] > 0


def test_the_estimate_is_the_formula_in_numpy():
    x, folds = _heavy(3), 5
    found = _found(StableRule(folds, shrink_rule()), x)
    whole = grid_ends(_found(shrink_rule(), x))[0].double().numpy()
    parts = np.stack(
        [grid_ends(_found(shrink_rule(), part))[0].numpy() for part in torch.tensor_split(x, folds)]
    ).astype(np.float64)
    median = parts.mean(axis=0)
    for _ in range(3000):
        weights = 1 / np.maximum(np.linalg.norm(parts - median, axis=1), 1e-12)
        median = (parts * weights[:, None]).sum(axis=0) / weights.sum()
    variance = np.median(np.linalg.norm(parts - median, axis=1) ** 2)  # of five: the third
    weight = variance / (variance + ((whole - median) ** 2).sum())
    ends = median + weight * (whole - median)
    assert float(found.scale) == pytest.approx((ends[1] - ends[0]) / 15, rel=1e-3)
    assert int(found.zero_point) == round(-ends[0] / ((ends[1] - ends[0]) / 15))


def test_weights_single_images_and_one_fold_are_the_pooled_rule():
    x = _heavy(4)
    for rule, given, key in (
        (StableRule(), x, "qkv.weight"),
        (StableRule(), x[:1], "qkv.input"),
        (StableRule(1), x, "qkv.input"),
    ):
        found, pooled = _found(rule, given, key), _found(histogram_shrink_rule(), given, key)
        assert torch.equal(found.scale, pooled.scale) and not rule.spreads
        assert torch.equal(found.zero_point, pooled.zero_point)


@torch.no_grad()
def test_one_fold_is_omse_to_the_bit(tiny, images, calibration):
    outputs = []
    for name, settings in (("stable-scales", {"folds": 1}), ("omse", {}), ("stable-scales", {})):
        method = METHODS.get(name).create(settings)
        outputs.append(method.quantize(tiny, method.bit_table(BitWidth(4, 4)), calibration)(images))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[2], outputs[1])


def test_channels_are_joined_each_for_itself():
    x = _heavy(6) * torch.tensor([1.0, 9, 1, 1, 0.1, 1, 1, 1])
    found = _found(StableRule(), x, granularity="channel", axis=-1)
    for channel in range(8):
        alone = _found(StableRule(), x[..., channel : channel + 1])
        torch.testing.assert_close(
            found.scale[channel : channel + 1], alone.scale, rtol=1e-3, atol=0
        )


def test_percentiles_are_spaced_by_ratio():
    grid = percentile_grid(5, 0.99)
    tails = 1 - np.array(grid)
    assert grid[-1] == 1 and grid[0] == pytest.approx(0.99)
    np.testing.assert_allclose(tails[1:-1] / tails[:-2], 1e-4 ** (1 / 3), rtol=1e-6)
    assert tails[-2] == pytest.approx(1e-6, rel=1e-6) and percentile_grid(2)[0] == pytest.approx(
        0.99
    )


def test_chunks_choose_their_percentiles_and_are_averaged():
    x = _heavy(7)
    x[:, 50:] *= 5
    fractions = percentile_grid()
    found = _found(chunked_percentile_rule(2), x)
    ends = []
    for chunk in (x[:, :50], x[:, 50:]):
        values, errors, ranges = chunk.double().numpy().ravel(), [], []
        for fraction in fractions:
            low, high = np.quantile(values, [1 - fraction, fraction])
            step = (high - low) / 15
            zero = np.round(-low / step)
            codes = np.clip(np.round(values / step) + zero, 0, 15)
            errors.append((((codes - zero) * step - values) ** 2).sum())
            ranges.append((-zero * step, (15 - zero) * step))
        ends.append(ranges[int(np.argmin(errors))])
    low, high = np.mean(ends, axis=0)
    assert float(found.scale) == pytest.approx((high - low) / 15, rel=1e-3)
    whole = _found(chunked_percentile_rule(1), x), _found(best_percentile_rule(fractions), x)
    assert torch.equal(whole[0].scale, whole[1].scale)
    weight = _found(chunked_percentile_rule(2), x, "qkv.weight")
    assert torch.equal(weight.scale, whole[1].scale)


@pytest.mark.parametrize("ranges", ["stable", "chunked-percentile"])
@torch.no_grad()
def test_rose_takes_both_as_ranges(ranges, vit, images, calibration):
    outputs = []
    for name in (ranges, "percentile", "searched"):
        method = METHODS.get("rose").create({"ranges": name, "folds": 2})
        outputs.append(method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)(images))
    assert bool(torch.isfinite(outputs[0]).all())
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])
