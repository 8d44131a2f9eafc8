"""What quantizers add to a forward pass, and each quantizer alone."""

from __future__ import annotations

import time

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import fake_quantize
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer

CODES = (0, 15)
EVALUATION_TARGET = 1.6
SCHEMES = (
    "uniform",
    "codebook",
    "codebook-float",
    "log-sqrt2",
    "log",
    "adalog",
    "log-int-softmax",
    "twin-softmax",
    "twin-gelu",
)


@pytest.mark.parametrize("name", ["minmax", "repq-vit", "rose"])
def test_forward_of_a_quantized_model(name, benchmark, vit, images, calibration, ratio):
    method = METHODS.get(name).create()
    quantized = method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)
    with torch.inference_mode():
        benchmark.pedantic(quantized, (images,), rounds=4, warmup_rounds=1)
    assert ratio(benchmark, EVALUATION_TARGET) > 1


def _seconds(function, *arguments):
    found = []
    for _ in range(5):
        start = time.process_time()
        function(*arguments)
        found.append(time.process_time() - start)
    return min(found)


def test_fake_quantization_against_torchs_operator(benchmark):
    """The passes are worth their lines only while they are much faster than the operator."""
    x = torch.randn(32, 197, 768, generator=torch.Generator().manual_seed(0))
    scale, zero_point = torch.tensor([0.1]), torch.tensor([7], dtype=torch.int32)
    with torch.inference_mode():
        theirs = _seconds(torch.fake_quantize_per_tensor_affine, x, scale, zero_point, *CODES)
        benchmark.pedantic(fake_quantize, (x, scale, zero_point, CODES), rounds=5, warmup_rounds=1)
    gain = theirs / benchmark.stats.stats.min
    print(f"\none scale: {gain:.1f} times as fast as torch's operator")
    assert gain > 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantizer_on_an_attention_map(scheme, benchmark, ratio):
    """All attention maps of one block: 32 images, 3 heads, 197 x 197 tokens."""
    x = torch.rand(32, 3, 197, 197, generator=torch.Generator().manual_seed(0)).softmax(-1)
    quantizer = build_quantizer(TensorSpec(4, scheme=scheme), "attention")
    quantizer.set_range(x.amin().reshape(1), x.amax().reshape(1))
    quantizer.active = True
    with torch.inference_mode():
        benchmark.pedantic(quantizer, (x,), rounds=5, warmup_rounds=1)
    ratio(benchmark)
