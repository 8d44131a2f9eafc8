"""The integer-exact reference: every product of a simulated model, to float rounding."""

import pytest
import timm
import torch

from tests.methods.quantization.deployment.test_lowering import quantized
from vit_ptq_bench.bench.contract.models import CLASSIFIERS, in_batches, make_images
from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.deployment.exact import exact_reference, integer_product


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
def test_each_operation_agrees_with_the_simulated_one_to_float_rounding(family, bits):
    model = quantized("minmax", family, bits)
    off = differences(model, make_images(8))
    assert len(off) == len(model.operations) and max(off.values()) < 3e-6


def differences(model, images):
    """By operation, on its simulated input: the largest difference as a share of the largest output."""
    exact = dict(exact_reference(model).module.named_modules())
    off = {}

    def compare(operation, inputs, output):
        found = exact[operation.name](*inputs)
        off[operation.name] = float((found - output).abs().max() / output.abs().max())

    for operation in model.operations:
        operation.register_forward_hook(compare)
    with torch.no_grad():
        model(images)
    return off


def test_sums_are_exact_where_float32_is_not():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(100, 256, (3, 5, 4096), generator=generator, dtype=torch.int32)
    second = torch.randint(100, 256, (3, 4096, 7), generator=generator, dtype=torch.int32)
    expected = (first.long()[:, :, :, None] * second.long()[:, None]).sum(2)
    assert torch.equal(integer_product(first, second).long(), expected)
    assert not torch.equal((first.float() @ second.float()).long(), expected)


def test_a_sum_that_hardware_could_not_hold_is_refused():
    wide = torch.full((1, 2**17), 255, dtype=torch.int32)
    with pytest.raises(MethodError, match="accumulator of 32 bits"):
        integer_product(wide, wide.t())


@pytest.mark.parametrize(
    ("name", "message"),
    [("repq-vit", "'log-sqrt2' has no operator"), ("fp32", "in floating point")],
)
def test_what_has_no_integers_is_named(name, message):
    bits = "W32A32" if name == "fp32" else "W4A4"
    with pytest.raises(MethodError, match=message):
        exact_reference(quantized(name, bits=bits))


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
def test_a_vit_tiny_agrees_operation_by_operation(bits):
    """At timm's size, twelve blocks deep: each operation on the simulated model's own input."""
    torch.manual_seed(0)
    tiny = timm.create_model("vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth.parse(bits), "equal")
    model = method.quantize(tiny, table, in_batches(images, seed=0))
    off = differences(model, images)
    assert len(off) == len(model.operations) == 74 and max(off.values()) < 3e-6
