"""SmoothQuant's scales against the formula, written with the original model's own weights."""

import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth


@torch.no_grad()
def test_folding_follows_equation_4_and_keeps_the_function(tiny, images, calibration):
    method = METHODS.get("smoothquant").create({})
    float_weights = method.quantize(tiny, method.bit_table(BitWidth(32, 8)), calibration)
    for site in float_weights.sites():
        site.quantizer.active = False
    torch.testing.assert_close(float_weights(images), tiny(images), rtol=0, atol=2e-5)


@torch.no_grad()
def test_scales(vit, images, calibration):
    block = vit.blocks[0]
    seen = []
    block.mlp.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit(images)
    for alpha in (0.0, 0.5, 1.0):
        method = METHODS.get("smoothquant").create({"alpha": alpha})
        model = method.quantize(vit, method.bit_table(BitWidth(32, 8)), calibration)
        largest = seen[0].abs().amax((0, 1))
        scale = largest**alpha / block.mlp.fc1.weight.abs().amax(0) ** (1 - alpha)
        norm = model.module.blocks[0].norm2
        torch.testing.assert_close(norm.weight, block.norm2.weight / scale)
        smoothed = model.module.blocks[0].mlp.fc1.weight
        torch.testing.assert_close(smoothed, block.mlp.fc1.weight * scale)
