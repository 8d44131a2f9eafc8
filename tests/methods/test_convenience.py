"""One call does what the long way does."""

import doctest

import pytest
import torch

from vit_ptq_bench.methods import METHODS, MethodError, quantize
from vit_ptq_bench.methods.api import convenience
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration


@pytest.mark.parametrize("protocol", ["equal", "authors"])
@torch.no_grad()
def test_equals_the_long_way_to_the_bit(protocol, vit, images):
    settings = {"iterations": 3, "learn": "rounding"}
    short = quantize(vit, "qdrop", "W4A4", images, protocol=protocol, seed=5, **settings)
    method = METHODS.get("qdrop").create(settings)
    table = method.bit_table(BitWidth(4, 4), protocol)
    long = method.quantize(vit, table, Calibration([images], seed=5))
    assert torch.equal(short(images), long(images))
    for name, tensor in long.state_tensors().items():
        assert torch.equal(short.state_tensors()[name], tensor)
    other = quantize(vit, "qdrop", "W4A4", images, protocol=protocol, seed=6, **settings)
    assert not torch.equal(other(images), long(images))


def test_the_example_runs():
    found = doctest.testmod(convenience)
    assert found.attempted == 6 and not found.failed


@torch.no_grad()
def test_transforms_go_in_front_of_the_method(vit, images):
    names = ["rotate-residual", "rotate-heads"]
    short = quantize(vit, "gptq", "W4A4", images, seed=5, transforms=names)
    method = METHODS.get("gptq").create().with_transforms(names)
    long = method.quantize(vit, method.bit_table(BitWidth(4, 4)), Calibration([images], seed=5))
    assert torch.equal(short(images), long(images))
    assert not torch.equal(short(images), quantize(vit, "gptq", "W4A4", images, seed=5)(images))
    with pytest.raises(
        MethodError, match="unknown transform 'rotate'; did you mean 'rotate-heads'"
    ):
        quantize(vit, "gptq", "W4A4", images, transforms=["rotate"])
    with pytest.raises(MethodError, match="must be a list of names; got 'rotate-heads'"):
        quantize(vit, "gptq", "W4A4", images, transforms="rotate-heads")


def test_mistakes_are_named(vit, images):
    with pytest.raises(MethodError, match="unknown method 'repqvit'; did you mean repq-vit"):
        quantize(vit, "repqvit", "W4A4", images)
    with pytest.raises(MethodError, match="no parameter 'alhpa'") as caught:
        quantize(vit, "smoothquant", "W4A4", images, alhpa=1.0)
    assert caught.value.parameter == "alhpa"
    for wrong in (images.double(), images[0], images[:, :1]):
        with pytest.raises(MethodError, match=r"float32 \[n, 3, height, width\]; got"):
            quantize(vit, "minmax", "W4A4", wrong)
    with pytest.raises(MethodError, match="W4"):
        quantize(vit, "minmax", "4 bits", images)
    with pytest.raises(MethodError, match="unknown protocol"):
        quantize(vit, "minmax", "W4A4", images, protocol="mine")
