"""Calibration of ViT-Tiny with 32 images at W4A4, from the loaded model to a quantized one."""

from __future__ import annotations

import pytest

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth

TARGETS = {
    "minmax": 2,
    "percentile": 6,
    "omse": 6,
    "repq-vit": 6,
    "easyquant": 60,
    "ptq4vit": 60,
    "apq-vit": 60,
    "adalog": 60,
    "smoothquant": 25,
    "gptq": 25,
    "erq": 25,
    "gptaq": 25,
    "marr": 25,
    "oac": 15,
    "adaquant": 60,
    "rose": 60,
    "rose-uniform": 60,
}
"""Most passes that a calibration may cost, in F."""

MISSED = {"ptq4vit": 79, "apq-vit": 512, "adaquant": 99}
"""What calibrations above their target have come to, with random weights; docs/performance.md counts why."""


@pytest.mark.parametrize("name", list(TARGETS))
def test_calibration(name, benchmark, vit, calibration, ratio):
    method = METHODS.get(name).create()
    table = method.bit_table(BitWidth(4, 4))
    rounds = 3 if TARGETS[name] <= 6 else 1
    benchmark.pedantic(method.quantize, (vit, table, calibration), rounds=rounds)
    ratio(benchmark, TARGETS[name], MISSED.get(name))


WEIGHT_ONLY = {"pwlq": 5, "subsetq": 5, "conlocnn": 5}
"""The same with activations in floating point, where nothing but the method's own work on weights is left."""

MIXED = 30
"""Passes that sharing out bits may cost, beside the method that it is for."""


@pytest.mark.parametrize("name", list(WEIGHT_ONLY))
def test_weights(name, benchmark, vit, calibration, ratio):
    method = METHODS.get(name).create()
    table = method.bit_table(BitWidth(4, 32))
    benchmark.pedantic(method.quantize, (vit, table, calibration), rounds=1)
    ratio(benchmark, WEIGHT_ONLY[name])


@pytest.mark.parametrize("name", ["repq-vit", "rose"])
def test_mixed_bits(name, benchmark, vit, calibration, ratio):
    method, bits = METHODS.get(name).create(), BitWidth.parse("W4A4:mixed")
    table = method.bit_table(bits)
    benchmark.pedantic(method.mixed_table, (vit, table, bits, calibration), rounds=1)
    ratio(benchmark, MIXED)
