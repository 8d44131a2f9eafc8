"""Costs of an image: products as torch's own counter has them, bits and bytes as the tables say."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.methods.quantization.deployment.test_lowering import quantized
from vit_ptq_bench.bench.contract.models import CLASSIFIERS, build_classifier, make_images
from vit_ptq_bench.methods.quantization.deployment.costs import costs_by_role


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_products_are_those_of_the_model_in_full_precision(family):
    model = build_classifier(family)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # torch counts nothing of it on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(make_images(1))
    costs = costs_by_role(quantized("minmax", family, "W8A8"), make_images(1))
    assert sum(cost["products"] for cost in costs.values()) == counter.get_total_flops() // 2


def test_bit_operations_are_products_times_both_bits():
    for bits, factor in (("W4A4", 16), ("W3A6", 18), ("W4A32", 128)):
        costs = costs_by_role(quantized("minmax", bits=bits), make_images(1))
        assert costs["fc1"]["bit_operations"] == factor * costs["fc1"]["products"]
    plain = costs_by_role(quantized("fp32", bits="W32A32"), make_images(1))
    assert plain["scores"]["bit_operations"] == 32 * 32 * plain["scores"]["products"]


def test_bytes_are_packed_codes_and_parameters():
    costs = costs_by_role(quantized("minmax", bits="W4A4"), make_images(1))
    # Two blocks of 32 x 128 codes of 4 bits; scale and zero point, 8 bytes, of 128 rows and one activation.
    assert costs["fc1"]["bytes"] == 2 * (32 * 128 // 2 + 8 * 128 + 8)
    assert costs["scores"]["bytes"] == 2 * 2 * 8
    plain = costs_by_role(quantized("fp32", bits="W32A32"), make_images(1))
    assert plain["fc1"]["bytes"] == 2 * 32 * 128 * 4


def test_nothing_is_left_watching():
    model = quantized("minmax")
    costs_by_role(model, make_images(1))
    assert not any(operation._forward_pre_hooks for operation in model.operations)
