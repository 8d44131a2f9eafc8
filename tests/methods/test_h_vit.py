"""H-ViT: powers of two everywhere, channels that fold away exactly, exponents by the output's error."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.bench.contract.models import build_classifier
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import (
    INPUT_SITES,
    OPERAND_ROLES,
    WEIGHT_SITES,
    BitWidth,
    equal_table,
)
from vit_ptq_bench.methods.quantization.calibration.least_squares import least_squares_rule
from vit_ptq_bench.methods.quantization.calibration.recording import record_operations
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.rounded_scales import PowerOfTwoQuantizer
from vit_ptq_bench.methods.quantization.search.powers_of_two import (
    LIMIT,
    calibrate_powers_of_two,
    channel_exponents,
    choose_exponents,
)

SITES = WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES


def is_power_of_two(value):
    numerator, denominator = float(value).as_integer_ratio()
    return 1 in (numerator, denominator) and (numerator * denominator).bit_count() == 1


def test_exponents_of_channels_equal_numpy():
    x = torch.randn(4, 50, 24, generator=torch.Generator().manual_seed(0))
    x = x * torch.logspace(-2, 2, 24)
    largest = np.abs(x.numpy()).reshape(-1, 24).max(axis=0)
    # torch's median of an even number of entries is the lower of the two in the middle.
    median = np.sort(largest)[11]
    expected = np.clip(np.round(np.log2(largest / median)), -LIMIT, LIMIT)
    assert channel_exponents(x).tolist() == expected.tolist()
    assert {-LIMIT, LIMIT} <= set(expected)
    x[..., :20] = 0
    assert not channel_exponents(x).any()
    x[..., 4:20] = 1.0
    assert channel_exponents(x)[0] == -LIMIT


@torch.no_grad()
def test_the_fold_keeps_the_full_precision_function(tiny, images, calibration):
    method = METHODS.get("h-vit").create()
    for protocol in ("equal", "authors"):
        wrapped = wrap_model(tiny, method.bit_table(BitWidth(4, 4), protocol))
        before = [link.norm.weight.clone() for link in wrapped.structure.norm_links]
        method.calibrate(wrapped, calibration)
        wrapped.activate(weights=False, activations=False)
        torch.testing.assert_close(wrapped(images), tiny(images), rtol=0, atol=1e-5)
        for weight, link in zip(before, wrapped.structure.norm_links, strict=True):
            ratios = weight / link.norm.weight
            assert all(is_power_of_two(ratio) for ratio in ratios) and len(ratios.unique()) > 1


@pytest.mark.parametrize("protocol", ["equal", "authors"])
@torch.no_grad()
def test_every_scale_is_a_power_of_two(protocol, tiny, calibration):
    method = METHODS.get("h-vit").create()
    quantized = method.quantize(tiny, method.bit_table(BitWidth(4, 4), protocol), calibration)
    for site in quantized.sites():
        assert all(is_power_of_two(scale) for scale in site.quantizer.scale), site.name
        if site.key == "attention":
            assert site.quantizer.scale.tolist() == [1.0]
        elif protocol == "authors":
            assert not site.quantizer.zero_point.any()
    norms = [site for site in quantized.sites() if site.key == "norm.input"]
    assert bool(norms) == (protocol == "authors")
    assert any(len(site.quantizer.scale.unique()) > 1 for site in norms) == bool(norms)


@torch.no_grad()
def test_eight_bits_lose_little_by_the_rounding(tiny, images, calibration):
    """The same method on the same table with scales that are not rounded."""
    method, expected = METHODS.get("h-vit").create(), tiny(images)
    table = method.bit_table(BitWidth(8, 8)).change("attention", scheme="uniform")
    rounded = method.quantize(
        tiny, table.change("attention", scheme="uniform-power-of-two"), calibration
    )
    free = method.quantize(tiny, table.change(SITES, scheme="uniform"), calibration)
    assert not any(isinstance(site.quantizer, PowerOfTwoQuantizer) for site in free.sites())
    errors = [float((one(images) - expected).norm() / expected.norm()) for one in (rounded, free)]
    # A step is up to twice as wide, 1.5 times in the root of the mean square.
    assert errors[0] < 1.5 * errors[1]


@torch.no_grad()
def test_the_chosen_exponent_is_the_better_of_two(calibration):
    """Of the operand that is searched last, against both tried by hand."""
    vit = build_classifier("vit")
    table = equal_table(BitWidth(4, 4)).change(SITES, scheme="uniform-power-of-two")
    table = table.change(SITES, granularity="tensor", symmetric=True, bits=4)
    wrapped = wrap_model(vit, table)
    calibrate_powers_of_two(wrapped, calibration, least_squares_rule(), rounds=1)
    checked = 0
    for operation, recording in record_operations(wrapped, calibration):
        quantizers = list(operation.quantizers().values())
        tensors = operation.operands(recording.inputs)
        fitted = [_least_squares(tensor.double().numpy()) for tensor in tensors]
        grids = {
            quantizer.site: (torch.tensor([step]), torch.zeros(1))
            for quantizer, step in zip(quantizers, fitted, strict=True)
        }
        choose_exponents(operation, recording, grids, rounds=1)
        kept = [float(quantizer.scale) for quantizer in quantizers]
        # What is searched last sees the other operand as it was chosen.
        last = 1 if operation.role in ("scores", "context") else 0
        errors = {}
        for step in (2.0 ** np.floor(np.log2(fitted[last])), 2.0 ** np.ceil(np.log2(fitted[last]))):
            steps = [step if which == last else kept[which] for which in (0, 1)]
            pair = [_on_grid(tensor, one) for tensor, one in zip(tensors, steps, strict=True)]
            error = operation.compute(*pair) - recording.output
            errors[step] = float(error.double().square().sum())
        assert min(errors, key=errors.get) == kept[last]
        checked += len(errors) == 2
    assert checked > 5


def _least_squares(values):
    """The step of least squared error at four signed bits, by trying."""
    tried = np.abs(values).max() / 7.5 * np.geomspace(0.1, 1, 200)
    errors = [((np.clip(np.round(values / s), -8, 7) * s - values) ** 2).sum() for s in tried]
    return float(tried[int(np.argmin(errors))])


def _on_grid(x, step):
    return (x / step).round().clamp(-8, 7) * step
