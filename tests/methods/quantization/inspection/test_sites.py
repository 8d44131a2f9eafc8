"""The figures of every site of small models against NumPy on tensors that are recorded another way."""

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
    equal_table,
    inspect_sites,
    minmax_rule,
    wrap_model,
)

W4A4 = equal_table(BitWidth.parse("W4A4"))


def minmax_levels(x: np.ndarray, bits: int) -> np.ndarray:
    """What a min-max grid for the whole array makes of it."""
    scale = (x.max() - x.min()) / (2**bits - 1)
    zero = np.round(-x.min() / scale)
    return scale * (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero)


def numpy_figures(channels: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    ranges = np.ptp(channels, axis=1)
    return {
        "mismatch": ranges.max() / ranges.mean(),
        "precision": ranges.mean() / (channels.max() - channels.min()),
        "sqnr": 10 * np.log10((channels**2).sum() / ((levels - channels) ** 2).sum()),
        "asymmetry": abs(channels.mean()) / channels.std(),
    }


def assert_figures(found, expected):
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-3), name


def test_a_vit_by_hand(vit, calibration):
    """qkv and attention of the first block, recomputed from timm's own layers."""
    found = {
        one.site: one for one in inspect_sites(wrap_model(vit, W4A4), calibration, minmax_rule)
    }
    block = vit.blocks[0]
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(calibration.whole())))
        x = block.norm1(tokens)
        qkv = block.attn.qkv(x).reshape(8, -1, 3, 2, 16).permute(2, 0, 3, 1, 4).double().numpy()
    query, key, value = qkv[0] * 16**-0.5, qkv[1], qkv[2]
    logits = query @ key.transpose(0, 1, 3, 2)
    maps = np.exp(logits - logits.max(-1, keepdims=True))
    maps /= maps.sum(-1, keepdims=True)

    inputs = x.double().numpy().reshape(-1, 32).T
    assert_figures(
        found["blocks.0.attn.qkv.input"], numpy_figures(inputs, minmax_levels(inputs, 4))
    )
    weight = block.attn.qkv.weight.detach().double().numpy()
    rows = np.stack([minmax_levels(row, 4) for row in weight])
    assert_figures(found["blocks.0.attn.qkv.weight"], numpy_figures(weight, rows))
    for name, operand in (("scores.query", query), ("scores.key", key), ("context.value", value)):
        channels = operand.transpose(1, 3, 0, 2).reshape(32, -1)
        expected = numpy_figures(channels, minmax_levels(channels, 4))
        assert_figures(found[f"blocks.0.attn.{name}"], expected)
    heads = maps.transpose(1, 0, 2, 3).reshape(2, -1)
    expected = numpy_figures(heads, minmax_levels(heads, 4))
    assert_figures(found["blocks.0.attn.context.attention"], expected)
    image = calibration.whole().double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    expected = numpy_figures(image, minmax_levels(image, 8))
    assert_figures(found["patch_embed.proj.input"], expected)


def test_every_site_has_its_figures_and_min_max_clips_nothing(tiny, calibration):
    model = wrap_model(tiny, W4A4)
    found = inspect_sites(model, calibration, minmax_rule)
    assert [one.site for one in found] == [site.name for site in model.sites()]
    for one in found:
        assert one.clipped == 0 and one.mismatch >= 1 and 0 < one.precision <= 1 + 1e-9
        assert 3 < one.sqnr < 60


def test_float_sites_are_measured_but_not_quantized(vit, calibration):
    table = equal_table(BitWidth.parse("W4A32"))
    found = inspect_sites(wrap_model(vit, table), calibration, minmax_rule)
    activations = [one for one in found if not one.is_weight]
    assert len(activations) > 10
    for one in activations:
        assert one.bits == 32 and one.sqnr is None and one.clipped is None and one.mismatch >= 1


def test_the_model_as_a_method_left_it(vit, calibration):
    """Percentile ranges clip; what is measured is what arrives behind the quantized prefix."""
    method = METHODS.get("percentile").create({})
    quantized = method.quantize(vit, W4A4, calibration, keep_unrounded=True)
    seen = {}
    handle = quantized.module.blocks[1].mlp.fc1.input_quantizer.register_forward_hook(
        lambda module, inputs, output: seen.update(x=inputs[0], y=output)
    )
    with torch.no_grad():
        quantized(calibration.whole())
    handle.remove()
    found = {one.site: one for one in inspect_sites(quantized, calibration)}
    x, y = (seen[name].double().numpy() for name in "xy")
    one = found["blocks.1.mlp.fc1.input"]
    assert one.sqnr == pytest.approx(10 * np.log10((x**2).sum() / ((y - x) ** 2).sum()), rel=1e-4)
    beyond = [site.clipped for site in found.values() if not site.is_weight]
    assert max(beyond) > 0
    weight = vit.blocks[1].mlp.fc1.weight.detach().double().numpy()
    rounded = quantized.module.blocks[1].mlp.fc1.weight.double().numpy()
    expected = 10 * np.log10((weight**2).sum() / ((rounded - weight) ** 2).sum())
    assert found["blocks.1.mlp.fc1.weight"].sqnr == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["gptq", "qdrop", "repq-vit"])
def test_weights_that_a_method_rounds_itself_keep_what_they_were(name, vit, calibration):
    cls = METHODS.get(name)
    method = cls.create(cls.quick)
    kept = method.quantize(vit, W4A4, calibration, keep_unrounded=True)
    for one in inspect_sites(kept, calibration):
        assert one.sqnr is not None and one.sqnr > 0
    torch.manual_seed(0)
    plain = cls.create(cls.quick).quantize(vit, W4A4, calibration)
    assert all(layer.unrounded is None for layer in plain.weighted_operations())
    for key, value in plain.state_tensors().items():
        assert torch.equal(value, kept.state_tensors()[key])
    weights = [one for one in inspect_sites(plain, calibration) if one.is_weight]
    assert {one.sqnr for one in weights} == {None}


def test_a_model_that_was_not_calibrated_is_refused(vit, calibration):
    with pytest.raises(MethodError, match="calibrate the model first"):
        inspect_sites(wrap_model(vit, W4A4), calibration)


def test_values_that_are_no_numbers_are_refused(vit, images):
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(MethodError, match="patch_embed.proj.input: NaN"):
        inspect_sites(wrap_model(vit, W4A4), in_batches(images, 0), minmax_rule)


def test_a_detector_with_all_its_parts():
    model = wrap_model(build_detector(), W4A4.with_scope("full"))
    calibration = in_batches(make_detector_images(2), seed=0)
    found = inspect_sites(model, calibration, minmax_rule)
    assert {one.site for one in found} == {site.name for site in model.sites()}
    assert all(one.clipped == 0 for one in found)
    assert any(one.key == "rpn_head.input" for one in found)


def test_the_batches_do_not_matter(vit, images):
    one = inspect_sites(wrap_model(vit, W4A4), in_batches(images, 0), minmax_rule)
    calibration = in_batches(images, 0)
    calibration.batches = [calibration.whole()]
    assert inspect_sites(wrap_model(vit, W4A4), calibration, minmax_rule) == one
