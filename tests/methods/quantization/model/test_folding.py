import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader


@torch.no_grad()
def test_folding_keeps_the_full_precision_function(tiny, images):
    wrapped = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    generator = torch.Generator().manual_seed(0)
    for link in wrapped.structure.norm_links:
        channels = link.norm.weight.shape[0]
        divisor = torch.rand(channels, generator=generator) * 4 + 0.2
        fold_into_reader(link, divisor, torch.randn(channels, generator=generator))
    torch.testing.assert_close(wrapped(images), tiny(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_reparameterized_input_equals_per_channel_quantization(vit, images, calibration):
    """With integer zero points the folded per-tensor path gives the per-channel path's codes."""
    method = METHODS.get("repq-vit").create({})
    table = method.bit_table(BitWidth(8, 4), "equal")
    quantized = method.quantize(vit, table, calibration)
    original, folded = vit.blocks[0], quantized.module.blocks[0]
    tokens = vit._pos_embed(vit.patch_embed(images))
    quantizer = folded.attn.qkv.input_quantizer
    # Undo the fold: gamma / gamma' is the ratio of channel scale to tensor scale.
    scales = quantizer.scale * original.norm1.weight / folded.norm1.weight
    per_channel = original.norm1(tokens)
    codes_folded = torch.round(folded.norm1(tokens) / quantizer.scale) + quantizer.zero_point
    codes = torch.round(per_channel / scales)
    shift = (codes_folded - codes).flatten(0, 1)
    most_common = shift.mode(dim=0).values
    assert (shift == most_common).float().mean() > 0.999
    assert (quantizer.zero_point == quantizer.zero_point.round()).all()


@torch.no_grad()
def test_repq_without_activation_quantizers_only_quantizes_weights(vit, images):
    method = METHODS.get("repq-vit").create({})
    table = method.bit_table(BitWidth(8, FLOAT), "equal")
    quantized = method.quantize(vit, table, Calibration([images]))
    folded, plain = quantized.module.blocks[0].norm1, vit.blocks[0].norm1
    assert torch.equal(folded.weight, plain.weight)
