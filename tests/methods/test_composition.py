"""Methods are made of parts: one line puts a transformation in front, one method another start."""

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.transforms.norms import smooth_norm_outputs


@torch.no_grad()
def scale_norms(model):
    """A toy part: move random factors from LayerNorm outputs into weights; keeps the function."""
    generator = torch.Generator().manual_seed(11)
    for link in model.structure.norm_links:
        factors = torch.rand(len(link.norm.weight), generator=generator) + 0.5
        fold_into_reader(link, factors, torch.zeros_like(factors))


def _scaled(name):
    class Scaled(METHODS.get(name)):
        def calibrate(self, model, calibration, progress=None):
            scale_norms(model)
            super().calibrate(model, calibration, progress)

    return Scaled


def _output(cls, model, calibration, bits, **settings):
    method = cls.create(dict(cls.quick) | settings)
    quantized = method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)
    with torch.no_grad():
        return quantized(calibration.whole())


@pytest.mark.parametrize("name", ["minmax", "gptq", "ptq4vit", "apq-vit", "brecq", "lrquant"])
def test_one_line_puts_a_transformation_in_front(name, tiny, images, calibration):
    """It is at work, as results differ, and changes no function, as they do not in full precision."""
    exact = tiny(images).detach()
    torch.testing.assert_close(
        _output(_scaled(name), tiny, calibration, "W32A32"), exact, rtol=0, atol=1e-4
    )
    plain = _output(METHODS.get(name), tiny, calibration, "W4A4")
    scaled = _output(_scaled(name), tiny, calibration, "W4A4")
    assert torch.isfinite(scaled).all() and not torch.equal(scaled, plain)


@pytest.mark.parametrize("name", ["brecq", "mgrq"])
def test_reconstruction_from_another_start(name, vit, calibration):
    class FromSmoothed(METHODS.get(name)):
        """Smoothing and min-max instead of RepQ-ViT's calibration."""

        def start(self, model, calibration, progress=None):
            smooth_norm_outputs(model, calibration, 0.5)
            calibrate_weights(model, minmax_rule)
            calibrate_activations(model, calibration, minmax_rule, progress=progress)

    base = {"start": "repq"} if name == "mgrq" else {}
    plain = _output(METHODS.get(name), vit, calibration, "W4A4", **base)
    other = _output(FromSmoothed, vit, calibration, "W4A4", **base)
    assert torch.isfinite(other).all() and not torch.equal(other, plain)


def test_without_iterations_reconstruction_is_its_start(vit, calibration):
    """RepQ-ViT's, but for the scales of uniform attention maps: none with the logarithmic form."""
    start = _output(METHODS.get("mgrq"), vit, calibration, "W4A4", iterations=0, start="repq")
    assert torch.equal(start, _output(METHODS.get("repq-vit"), vit, calibration, "W4A4"))
