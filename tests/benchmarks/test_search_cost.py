"""Scale search and the shrinking of ranges on one layer of ViT-Tiny (fc1, 32 images)."""

from __future__ import annotations

import pytest
import torch

from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.range_rules import (
    best_percentile_rule,
    histogram_shrink_rule,
    minmax_rule,
    shrink_rule,
)
from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.search.candidates import Grid
from vit_ptq_bench.methods.quantization.search.operation import search_operation
from vit_ptq_bench.methods.quantization.search.scores import CosineMetric, FisherMetric

RULES = {
    "minmax": minmax_rule,
    "best-percentile": best_percentile_rule((0.999, 0.9999, 0.99999)),
    "shrink": shrink_rule(),
    "histogram-shrink": histogram_shrink_rule(),
}


@pytest.fixture(scope="module")
def layer(vit):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    return next(op for op in wrapped.operations if op.role == "fc1")


@pytest.fixture(scope="module")
def record(layer):
    x = torch.randn(32, 197, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = layer.compute(x, layer.weight)
    return Recording((x,), output, torch.ones_like(output))


@pytest.mark.parametrize("name", list(RULES))
def test_range_rule(name, benchmark, layer, record, ratio):
    quantizer = layer.input_quantizer
    site = Site(quantizer.site, "fc1.input", quantizer, layer)
    with torch.no_grad():
        benchmark.pedantic(RULES[name], (site, record.inputs[0]), rounds=3, warmup_rounds=1)
    ratio(benchmark)


@pytest.mark.parametrize("metric", [CosineMetric(), FisherMetric()], ids=["cosine", "fisher"])
def test_search_of_both_operands(metric, benchmark, layer, record, ratio):
    benchmark.pedantic(search_operation, (layer, record, metric, Grid(0.5, 1.2), 1), rounds=1)
    ratio(benchmark)
