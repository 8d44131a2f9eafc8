"""ROSE's parts switched on and off: every combination is legal, and each does what it says."""

from itertools import product

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.range_rules import percentile_ranges
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import visit_streams

UNTRANSFORMED = dict.fromkeys(
    ("rotate_residual", "shift_norms", "rotate_heads", "equalise_heads"), False
)
FACTORS = (
    ({"ranges": "percentile"}, {}),
    (UNTRANSFORMED, {}),
    ({"attention": "uniform", "gelu": "uniform"}, {}),
    ({"weights": "nearest"}, {}),
    ({}, {"correction": "folded"}),
)


@pytest.fixture
def many():
    """Enough images for a regression to hold on others."""
    return Calibration([torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(5))])


def _quantized(model, calibration, bits="W4A4", **settings):
    method = METHODS.get("rose").create(settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


@torch.no_grad()
def test_every_combination_of_parts_is_legal_and_is_its_own(vit, images, many):
    outputs = []
    for levels in product(*FACTORS):
        settings = {key: value for level in levels for key, value in level.items()}
        settings |= {
            "levels": "uniform"
        }  # the range of a codebook is searched whatever `ranges` says
        outputs.append(_quantized(vit, many, "W3A3", **settings)(images).flatten())
    assert bool(torch.isfinite(torch.stack(outputs)).all())
    assert len(torch.stack(outputs).unique(dim=0)) == 32


@torch.no_grad()
def test_plain_ranges_are_percentiles_of_full_precision_whatever_the_site(vit, calibration):
    uniform = dict.fromkeys(("attention", "gelu", "levels"), "uniform")
    settings = {"ranges": "percentile", **uniform, **UNTRANSFORMED}
    quantized = _quantized(vit, calibration, "W32A4", **settings)
    seen = {}

    def watched(site):
        return lambda _, inputs: seen.update({site.name: inputs[0].clone()})

    exact = parts.wrap_model(vit, METHODS.get("rose").create(settings).bit_table(BitWidth(32, 4)))
    for site in exact.sites():
        if not site.is_weight:
            site.quantizer.register_forward_pre_hook(watched(site))
    exact.activate(weights=False, activations=False)
    exact(calibration.whole())
    compared = 0
    for site in quantized.sites():
        if site.is_weight or site.quantizer.spec.granularity != "tensor":
            continue
        x = seen[site.name].reshape(1, -1)
        low, high = percentile_ranges(x, (0.999, 0.9999, 0.99999))
        top = 2**site.quantizer.spec.bits - 1
        scales = (high.clamp_min(0) - low.clamp_max(0)) / top
        assert torch.isclose(scales, site.quantizer.scale, rtol=1e-4).any(), site.name
        compared += site.key == "attention"
    assert compared == 2


@torch.no_grad()
def test_logarithmic_grids_are_searched_whatever_the_start(vit, calibration):
    forms = {"attention": "log", "gelu": "offset-log", "levels": "uniform"}
    both = [
        _quantized(vit, calibration, "W32A4", ranges=r, **forms) for r in ("searched", "percentile")
    ]
    grids = [
        [s.quantizer for s in model.sites() if s.key in ("attention", "fc2.input")]
        for model in both
    ]
    assert len(grids[0]) == 4
    for first, second in zip(*grids, strict=True):
        assert first.spec.scheme in ("log", "offset-log")
        if first.spec.scheme == "offset-log":
            torch.testing.assert_close(first.levels(), second.levels())


@torch.no_grad()
def test_codebooks_are_searched_whatever_the_start(vit, calibration):
    both = [_quantized(vit, calibration, "W32A4", ranges=r) for r in ("searched", "percentile")]
    compared = 0
    for first, second in zip(
        *([s.quantizer for s in model.sites()] for model in both), strict=True
    ):
        if first.spec.scheme.startswith("codebook"):
            assert torch.equal(first.levels, second.levels), first.site
            assert torch.equal(first.scale, second.scale), first.site
            compared += 1
    activations = [site for site in both[0].sites() if not site.is_weight]
    assert compared == len(activations) - 1  # the picture has eight bits


def test_at_eight_bits_there_are_no_codebooks():
    table = METHODS.get("rose").create().bit_table(BitWidth(8, 8))
    assert table["attention"].scheme == "log" and table["fc2.input"].scheme == "offset-log"
    others = {spec.scheme for key, spec in table.items() if key not in ("attention", "fc2.input")}
    assert others == {"uniform"}
    mixed = METHODS.get("rose").create().bit_table(BitWidth(4, 8))
    assert {mixed[key].scheme for key in ("qkv.weight", "head.weight")} == {"codebook"}
    assert mixed["qkv.input"].scheme == "uniform"


def _ridge_by_numpy(x, y, weight, ridge):
    mean_x, mean_y = (np.average(z, axis=0, weights=weight) for z in (x, y))
    root = np.sqrt(weight)[:, None]
    centred, wanted = root * (x - mean_x), root * (y - mean_y)
    second = centred.T @ centred
    second += ridge * np.trace(second) / len(second) * np.eye(len(second))
    matrix = np.linalg.solve(second, centred.T @ wanted).T
    return matrix, mean_y - matrix @ mean_x


@torch.no_grad()
def test_a_folded_correction_is_the_regression_of_what_the_stream_lacks(vit, many):
    table = METHODS.get("rose").create().bit_table(BitWidth(32, 3))
    model = parts.wrap_model(vit, table)
    parts.calibrate_grids(model, many)
    correction, changed, alone = parts.FoldedCorrection(0.1), [], []

    def visit(streams):
        layer = streams.layer
        rows = list(streams.batches())
        x, target, weight = (
            torch.cat([getattr(r, name) for r in rows]).double().numpy()
            for name in ("x", "target", "weight")
        )
        before, bias = layer.weight.flatten(1).double(), layer.ensure_bias().double()
        before, bias = before.numpy().copy(), bias.numpy().copy()
        correction(streams)
        if not streams.writes:
            alone.append(layer.role)
            assert np.array_equal(before, layer.weight.flatten(1).double().numpy())
            return
        moved, more = _ridge_by_numpy(x, target - x @ before.T - bias, weight, 0.1)
        after = layer.weight.double().numpy()
        if not np.array_equal(after, before):
            changed.append(layer.role)
            np.testing.assert_allclose(after - before, moved, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(layer.bias.double().numpy() - bias, more, atol=1e-4)

    visit_streams(model, many, visit)
    assert {"proj", "fc2"} >= set(changed) != set()
    assert set(alone) == {"patch_embed", "qkv", "fc1", "head"}


def test_one_image_is_refused_before_any_work(vit, images):
    with pytest.raises(MethodError, match="at least 2 calibration images"):
        _quantized(vit, Calibration([images[:1]]), correction="folded")
