"""Spikes and reconstruction errors against what is computed by hand."""

import pytest
import torch
from torch import nn

from vit_ptq_bench.methods.quantization.allocation.reconstruction_error import reconstruction_errors
from vit_ptq_bench.methods.quantization.allocation.sensitivity import grids_at
from vit_ptq_bench.methods.quantization.allocation.spikes import spike_ratio, spike_ratios
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families.registry import wrap_model

BITS = BitWidth(4, 4)


def test_a_ratio_is_the_largest_token_by_the_middle_one() -> None:
    x = torch.zeros(2, 5, 3)
    x[0, :, 1] = torch.tensor([1.0, -2.0, 3.0, 4.0, -30.0])  # middle 3, largest 30
    x[1, :, 2] = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0])
    assert spike_ratio(x, -1, 2) == pytest.approx((10 + 1) / 2)
    assert spike_ratio(x.transpose(1, 2), 1, 2) == pytest.approx((10 + 1) / 2)
    windows = x.repeat_interleave(3, dim=0)  # three windows an image
    assert spike_ratio(windows, -1, 2) == pytest.approx((10 + 1) / 2)


def test_a_spike_is_found_where_it_is(vit: nn.Module, calibration: Calibration) -> None:
    model = wrap_model(vit, equal_table(BITS))
    before = spike_ratios(model, calibration)
    assert all(ratio >= 1 for ratio in before.values())
    assert "patch_embed.proj.input" not in before and "blocks.0.attn.scores.query" not in before

    def spike(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 3] *= 100
        return output

    fc1 = next(op for op in model.operations if op.name == "blocks.0.mlp.fc1")
    handle = fc1.register_forward_hook(spike)
    after = spike_ratios(model, calibration)
    handle.remove()
    assert after["blocks.0.mlp.fc2.input"] > 10 * before["blocks.0.mlp.fc2.input"]
    assert after["blocks.0.mlp.fc1.input"] == before["blocks.0.mlp.fc1.input"]


def test_swin_and_its_windows(tiny: nn.Module, calibration: Calibration) -> None:
    ratios = spike_ratios(wrap_model(tiny, equal_table(BITS)), calibration)
    assert ratios and all(1 <= ratio < 1e4 for ratio in ratios.values())


def test_an_error_is_that_of_the_layer_behind_quantized_ones(
    vit: nn.Module, calibration: Calibration
) -> None:
    model = wrap_model(vit, equal_table(BITS))
    grids = {bits: grids_at(model, calibration, bits) for bits in (3, 8)}
    current = dict.fromkeys(grids[3], 8)
    found = reconstruction_errors(model, calibration, grids, current)
    assert not any(site.quantizer.active for site in model.sites())
    images = calibration.whole()
    arrived: dict[str, torch.Tensor] = {}
    layer = next(op for op in model.operations if op.name == "blocks.1.mlp.fc1")
    with torch.no_grad():
        handle = layer.register_forward_hook(
            lambda module, inputs, output: arrived.update(x=inputs[0], y=output)
        )
        model(images)
        exact = arrived["y"]
        for site in model.sites():
            if site.name in grids[8]:
                for attribute, own in list(site.operation.named_children()):
                    if own is site.quantizer:
                        setattr(site.operation, attribute, grids[8][site.name])
        model.activate()
        model(images)
        handle.remove()
        x = grids[8][f"{layer.name}.input"].fake_quantize(arrived["x"])
        weight = grids[3][f"{layer.name}.weight"].fake_quantize(layer.weight)
        output = x @ weight.T + layer.bias
    expected = (output - exact).square().sum() / exact.square().sum()
    assert found[f"{layer.name}.weight"][3] == pytest.approx(float(expected), rel=1e-4)
    assert all(errors[3] > errors[8] for errors in found.values())
