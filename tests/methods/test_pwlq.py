"""PWLQ: its cells and borders computed another way, and what its bias correction promises."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization import PERCENTILES, best_percentile_rule, piecewise_rule
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.calibration.piecewise_search import search_pieces
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.piecewise import PiecewiseQuantizer
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 200, generator=GENERATOR) * torch.tensor([[0.1], [1], [1], [2], [3], [0.5]])


def _quantizer(bits):
    return PiecewiseQuantizer(TensorSpec(bits, "channel"), "w", axis=0)


def _in_cells(w, m, p, bits):
    """Floor to the cell, then its centre, piece by piece: no level is searched."""
    wide, narrow = 2 * p / 2 ** (bits - 1), (m - p) / 2 ** (bits - 2)
    middle = (np.floor(w / wide).clip(-(2 ** (bits - 2)), 2 ** (bits - 2) - 1) + 0.5) * wide
    steps = np.floor((np.abs(w) - p) / narrow).clip(0, 2 ** (bits - 2) - 1)
    return np.where(np.abs(w) <= p, middle, np.sign(w) * (p + (steps + 0.5) * narrow))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("split", [0.2, 0.35, 0.7])
def test_values_are_centres_of_cells_wherever_no_piece_is_nearer(bits, split):
    """At a border the nearest level may be across it; everywhere else it is the centre of the cell."""
    quantizer = _quantizer(bits)
    m = WEIGHT.abs().amax(1)
    quantizer.set_pieces(m, torch.full_like(m, split))
    assert quantizer.problem() is None
    found = quantizer.fake_quantize(WEIGHT).double().numpy()
    w, m = WEIGHT.double().numpy(), m.double().numpy()[:, None]
    wanted = _in_cells(w, m, split * m, bits)
    same = np.abs(found - wanted) < 1e-5 * m
    assert (np.abs(found - w) <= np.abs(wanted - w) + 1e-5 * m).all()
    widest = np.maximum(2 * split * m / 2 ** (bits - 1), (1 - split) * m / 2 ** (bits - 2))
    near_border = np.abs(np.abs(w) - split * m) < widest / 2
    assert (same | near_border).all() and same.mean() > 0.4
    assert {len(row.unique()) for row in quantizer.table()} == {2**bits}


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_border_is_as_good_as_the_best_of_a_fine_grid(bits):
    quantizer = _quantizer(bits)
    search_pieces(quantizer, WEIGHT, "grid")
    assert quantizer.problem() is None
    found = (quantizer.fake_quantize(WEIGHT) - WEIGHT).double().square().sum(1)
    fine, gaussian = _quantizer(bits), _quantizer(bits)
    errors = []
    for split in torch.linspace(0.02, 0.98, 961):
        fine.set_pieces(WEIGHT.abs().amax(1), split.expand(6))
        errors.append((fine.fake_quantize(WEIGHT) - WEIGHT).double().square().sum(1))
    # The coarse grid may stop beside a narrow valley.
    assert bool((found <= 1.1 * torch.stack(errors).amin(0)).all())
    assert float(found.sum()) <= 1.04 * float(torch.stack(errors).amin(0).sum())
    search_pieces(gaussian, WEIGHT, "gaussian")
    by_formula = (gaussian.fake_quantize(WEIGHT) - WEIGHT).double().square().sum(1)
    assert float(found.sum()) < float(by_formula.sum()) < 2 * float(found.sum())
    m, sigma = WEIGHT[1].abs().max(), WEIGHT[1].std(correction=0)
    border = sigma * torch.log(0.86143114 * m / sigma + 0.607901097496529)
    assert float(gaussian.split[1]) == pytest.approx(float(border / m), rel=1e-4)


def test_splits_that_no_row_has_are_told():
    quantizer = _quantizer(4)
    search_pieces(quantizer, WEIGHT, "grid")
    good = quantizer.split
    for split, words in (
        (good[:-1], "splits"),
        (good.double(), "splits"),
        (good * 0, "between 0 and 1"),
        (good / 0, "between 0 and 1"),
    ):
        quantizer.split = split
        assert words in quantizer.problem()


def test_bits_are_the_stored_ones():
    method = METHODS.get("pwlq").create({})
    for text, own in (("W4A4", 5), ("W8A8", 8)):
        bits = BitWidth.parse(text)
        equal, authors = (method.bit_table(bits, protocol) for protocol in ("equal", "authors"))
        assert {equal[site].bits for site in WEIGHT_SITES} == {bits.weight}
        assert {authors[site].bits for site in WEIGHT_SITES} == {own}
        assert all(
            table[site].scheme == "piecewise" for table in (equal, authors) for site in WEIGHT_SITES
        )
    assert method.bit_table(BitWidth.parse("W32A8"), "authors")["fc1.weight"].bits == 32


@torch.no_grad()
def test_the_bias_correction_keeps_deviations_and_mean_outputs(vit, images, calibration):
    """Against the model without it: deviations of rows, and the mean output of the layer."""
    table = METHODS.get("pwlq").create({}).bit_table(BitWidth(3, 32))
    model = METHODS.get("pwlq").create({}).quantize(vit, table, calibration)
    bare = METHODS.get("pwlq").create({"bias_correction": False}).quantize(vit, table, calibration)
    exact = wrap_model(vit, table)
    rule = piecewise_rule("grid", best_percentile_rule(PERCENTILES))
    calibrate_reparameterized(exact, calibration, rule=rule)  # its folds, its weights not frozen
    layers = zip(*(m.weighted_operations() for m in (model, bare, exact)), strict=True)
    for corrected, plain, origin in layers:
        assert torch.equal(corrected.codes, plain.codes)
        rows = [layer.weight.flatten(1) for layer in (corrected, plain, origin)]
        deviations = [row.std(dim=1) for row in rows]
        torch.testing.assert_close(deviations[0], deviations[2], rtol=1e-4, atol=0)
        assert not torch.allclose(deviations[1], deviations[2], rtol=1e-4)
    first = model.weighted_operations()[0], exact.weighted_operations()[0]
    tokens = first[1].columns(calibration.whole())
    lack = first[1].weight.flatten(1).mean(1) - first[0].weight.flatten(1).mean(1)
    wanted = first[1].bias + torch.outer(tokens.sum(1), lack).mean(0)
    torch.testing.assert_close(first[0].bias, wanted, rtol=1e-4, atol=1e-5)
