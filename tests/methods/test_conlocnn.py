"""CoNLoCNN: blocks of neighbouring columns against each block alone, and whether errors cancel."""

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.calibration.level_search import search_levels
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    compensated_codes,
    grid_of,
    second_moment,
    within_blocks,
)
from vit_ptq_bench.methods.quantization.quantizers.power_sums import SignedPowersQuantizer


def _problem(bits, columns=44):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(8, columns, generator=generator)
    # Neighbours are correlated: a running mean over nine columns.
    noise = torch.randn(400, columns + 8, generator=generator)
    x = noise.unfold(1, 9, 1).mean(2) + 0.2 * noise[:, :columns] + 0.5
    quantizer = SignedPowersQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
    search_levels(quantizer, weight)
    return weight, x, quantizer


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_local_codes_are_those_of_each_block_alone(bits):
    weight, x, quantizer = _problem(bits)
    local = within_blocks(second_moment(x), 16)
    codes = compensated_codes(weight, grid_of(quantizer, weight), local, 0.0, False)
    for start in range(0, 44, 16):
        part = slice(start, min(start + 16, 44))
        own = second_moment(x[:, part])
        alone = compensated_codes(weight[:, part], grid_of(quantizer, weight), own, 0.0, False)
        assert torch.equal(codes[:, part], alone)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_errors_cancel_more_the_more_columns_know_of_each_other(bits):
    weight, x, quantizer = _problem(bits)
    second = second_moment(x)
    errors = []
    for hessian in (second.diagonal().diag(), within_blocks(second, 16), second):
        codes = compensated_codes(weight, grid_of(quantizer, weight), hessian, 0.01, False)
        errors.append(float((x @ (quantizer.dequantize(codes) - weight).T).square().sum()))
    assert errors[2] < errors[1] < 0.8 * errors[0]


@torch.no_grad()
def test_both_modes_are_nearer_than_rounding(tiny, calibration):
    """A huge damping leaves nothing of the compensation."""
    images, errors = calibration.whole(), []
    for settings in ({}, {"mode": "local"}, {"damping": 1e6}):
        method = METHODS.get("conlocnn").create(settings)
        model = method.quantize(tiny, method.bit_table(BitWidth(3, 32)), calibration)
        errors.append(float((model(images) - tiny(images)).norm()))
        assert ("16 neighbouring" in method.notes()[0]) == ("mode" in settings)
    assert errors[0] < errors[2] and errors[1] < errors[2]
