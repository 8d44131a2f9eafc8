"""Gains of blocks against whole Jacobians and against differences."""

import math

import numpy as np
import pytest
import torch

from vit_ptq_bench.bench.contract.models import (
    build_detector,
    in_batches,
    make_detector_images,
)
from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods.quantization import (
    BitWidth,
    Calibration,
    equal_table,
    propagation_gains,
    wrap_model,
)

W4A4 = equal_table(BitWidth.parse("W4A4"))


def test_the_gain_is_that_of_the_whole_jacobian(vit, images):
    calibration = Calibration([images[:1]], seed=4)
    found = propagation_gains(wrap_model(vit, W4A4), calibration)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images[:1])))
    assert [one.segment for one in found] == ["blocks.0", "blocks.1"]
    for one, block in zip(found, vit.blocks, strict=True):
        jacobian = torch.autograd.functional.jacobian(block, x).double().numpy()
        e = torch.randn(x.shape, generator=generator).double().numpy()
        moved = jacobian.reshape(x.numel(), x.numel()) @ e.ravel()
        expected = np.linalg.norm(moved) / np.linalg.norm(e)
        assert one.gain == pytest.approx(expected, rel=1e-4)
        with torch.no_grad():
            x = block(x)


def test_every_family_against_differences(tiny, calibration):
    model = wrap_model(tiny, W4A4)
    found = {one.segment: one.gain for one in propagation_gains(model, calibration)}
    generator, x, step = torch.Generator().manual_seed(3), calibration.whole(), 1e-3
    with torch.no_grad():
        for segment in model.structure.segments:
            y = segment.run(x)
            if segment.kind in ("block", "merge"):
                e = torch.randn(x.shape, generator=generator)
                ends = [segment.run(x + sign * step * e).double() for sign in (1, -1)]
                moved = (ends[0] - ends[1]) / (2 * step)
                expected = float(moved.norm()) / float(e.double().norm())
                assert found.pop(segment.name) == pytest.approx(expected, rel=2e-2)
            x = y
    assert found == {}


def test_scaled_linear_blocks_have_the_gain_of_their_scale(vit, calibration):
    """Without attention and MLP a block is the identity, and hands errors on as they are."""
    with torch.no_grad():
        for block in vit.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
    found = propagation_gains(wrap_model(vit, W4A4), calibration)
    assert all(math.isclose(one.gain, 1.0, rel_tol=1e-5) for one in found)


def test_the_seed_decides(vit, images):
    def gains(seed):
        return propagation_gains(wrap_model(vit, W4A4), in_batches(images, seed))

    assert gains(1) == gains(1) != gains(2)


def test_a_detector_has_gains_of_its_backbone():
    model = wrap_model(build_detector(), W4A4)
    found = propagation_gains(model, in_batches(make_detector_images(2), seed=0))
    assert [one.kind for one in found] == ["block", "block", "merge", "block", "block"]
    assert all(0.05 < one.gain < 20 for one in found)


def test_a_model_with_rounded_weights_is_refused(vit, calibration):
    quantized = METHODS.get("minmax").create({}).quantize(vit, W4A4, calibration)
    with pytest.raises(MethodError, match="wrap it anew"):
        propagation_gains(quantized, calibration)


def test_values_that_are_no_numbers_are_refused(vit, images):
    images[0] = torch.inf
    with pytest.raises(MethodError, match="NaN or infinite"):
        propagation_gains(wrap_model(vit, W4A4), in_batches(images, 0))
