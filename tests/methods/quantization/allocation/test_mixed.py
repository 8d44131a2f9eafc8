"""Bits shared out among sites: sizes, sensitivities and tables against what is computed by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.allocation.mixed import mixed_table, shared_out
from vit_ptq_bench.methods.quantization.allocation.sensitivity import STEP, STEPS, sensitivities
from vit_ptq_bench.methods.quantization.allocation.sites import IMAGE, mean_bits, site_sizes
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.passes import calibrate_weights
from vit_ptq_bench.methods.quantization.calibration.range_rules import shrink_rule
from vit_ptq_bench.methods.quantization.model.families.registry import wrap_model

BITS = BitWidth(4, 4, mixed=True)


def test_sizes_are_those_of_weights_and_of_what_one_image_gives(
    vit: nn.Module, calibration: Calibration
) -> None:
    model = wrap_model(vit, equal_table(BITS))
    sizes = site_sizes(model, calibration)
    tokens, width = vit.pos_embed.shape[1], vit.embed_dim
    heads = vit.blocks[0].attn.num_heads
    expected = {
        "blocks.0.attn.qkv.weight": vit.blocks[0].attn.qkv.weight.numel(),
        "blocks.0.attn.qkv.input": tokens * width,
        "blocks.0.attn.scores.query": tokens * width,
        "blocks.0.attn.context.attention": heads * tokens**2,
        "blocks.1.mlp.fc2.input": tokens * vit.blocks[1].mlp.fc1.out_features,
        "head.input": width,
    }
    assert {name: sizes[name] for name in expected} == expected


def test_the_mean_is_that_of_stored_values_without_the_image(
    tiny: nn.Module, calibration: Calibration
) -> None:
    table = equal_table(BITS)
    model = wrap_model(tiny, table)
    sizes = site_sizes(model, calibration)
    assert mean_bits(model, sizes) == {"weight": 4, "activation": 4}
    one = next(site for site in model.sites() if site.key == "fc2.input")
    changed = wrap_model(tiny, table.change(f"fc2.input@{one.operation.name}", bits=8))
    activations = sum(
        sizes[site.name] for site in model.sites() if not site.is_weight and site.key != IMAGE
    )
    expected = 4 + 4 * sizes[one.name] / activations
    assert mean_bits(changed, sizes)["activation"] == pytest.approx(expected)
    assert mean_bits(wrap_model(tiny, equal_table(BitWidth(4, 32))), sizes) == {"weight": 4}


def test_a_sensitivity_is_the_squared_error_of_an_output_weighted_by_its_gradient(
    vit: nn.Module, calibration: Calibration
) -> None:
    """Of the head, whose output is what the loss sees: softmax minus the label that was drawn."""
    table = equal_table(BitWidth(3, 32))
    found = sensitivities(wrap_model(vit, table), calibration, (3,))
    model = wrap_model(vit, table)
    images = calibration.whole()
    with torch.no_grad():
        logits = model(images)
        calibrate_weights(model, shrink_rule(STEPS, STEP))
        head = next(op for op in model.weighted_operations() if op.name == "head")
        rounded = head.weight_quantizer.fake_quantize(head.weight)
        features = vit.forward_head(vit.forward_features(images), pre_logits=True)
        moved = features @ (rounded - head.weight).T
    exact = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(fisher_loss(exact, calibration.generator()), exact)
    expected = 0.5 * (gradient * moved).double().square().sum() / len(images)
    assert found["head.weight"][3] == pytest.approx(float(expected), rel=1e-4)
    assert not any(name.endswith(".input") for name in found)


def test_looking_changes_nothing(vit: nn.Module, calibration: Calibration) -> None:
    model = wrap_model(vit, equal_table(BITS))
    before = {site.name: site.quantizer for site in model.sites()}
    outputs = model(calibration.whole())
    found = sensitivities(model, calibration)
    assert {site.name: site.quantizer for site in model.sites()} == before
    assert torch.equal(model(calibration.whole()), outputs)
    assert set(found) == {name for name in before if name != "patch_embed.proj.input"}
    for errors in found.values():
        assert errors[2] > errors[8] >= 0


def test_the_same_mean_with_less_error(tiny: nn.Module, calibration: Calibration) -> None:
    model = wrap_model(tiny, equal_table(BITS))
    sizes, errors = site_sizes(model, calibration), sensitivities(model, calibration)
    table = shared_out(model, sizes, errors, BITS)
    mixed = wrap_model(tiny, table)
    means = mean_bits(mixed, sizes)
    assert max(means.values()) <= 4 and min(means.values()) > 3.5
    lost = sum(errors[s.name][s.quantizer.spec.bits] for s in mixed.sites() if s.name in errors)
    assert lost < sum(own[4] for own in errors.values())
    assert all(replace(spec, bits=4) == table[key.split("@")[0]] for key, spec in table.own.items())


def test_one_width_is_that_width(vit: nn.Module, calibration: Calibration) -> None:
    model = wrap_model(vit, equal_table(BITS))
    assert mixed_table(model, calibration, BITS, widths=(4,)) == model.table


def test_what_has_other_bits_keeps_them(vit: nn.Module, calibration: Calibration) -> None:
    table = equal_table(BITS).change(("head.weight", "head.input"), bits=8)
    found = mixed_table(wrap_model(vit, table), calibration, BITS)
    assert found.of("head.weight", "head").bits == found.of("head.input", "head").bits == 8
    assert found.own


@pytest.mark.parametrize("name", ["repq-vit", "rose", "ptq4vit"])
def test_methods_run_on_what_was_found(name: str, vit: nn.Module, calibration: Calibration) -> None:
    cls = METHODS.get(name)
    method = cls.create(cls.quick)
    table = method.mixed_table(vit, method.bit_table(BITS), BITS, calibration)
    assert table.own
    quantized = method.quantize(vit, table, calibration)
    for site in quantized.sites():
        assert site.quantizer.spec == table.of(site.key, site.operation.name)
    assert torch.isfinite(quantized(calibration.whole())).all()


def test_with_full_precision_activations_weights_alone_share(
    vit: nn.Module, calibration: Calibration
) -> None:
    bits = BitWidth.parse("W3A32:mixed")
    table = mixed_table(wrap_model(vit, equal_table(bits)), calibration, bits)
    assert table.own and all(".weight@" in key for key in table.own)
