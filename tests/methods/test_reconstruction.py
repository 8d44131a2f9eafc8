"""The reconstruction engine: identities of its parts, and that it lowers what it minimises."""

import logging

import pytest
import torch

from methods import METHODS
from methods.quantization import BitWidth, TensorSpec, equal_table, wrap_model
from methods.quantization.quantizers import UniformQuantizer
from methods.quantization.reconstruction import engine
from methods.quantization.reconstruction.learned import (
    LearnedOffset,
    LearnedRounding,
    LearnedStep,
)
from methods.quantization.reconstruction.terms import (
    Batch,
    BlockError,
    LocalDivergence,
    PredictionDivergence,
)

FAST = {"iterations": 10, "batch_size": 8}
NAMES = ["brecq", "mgrq", "pd-quant", "qdrop"]


def _quantize(name, model, calibration, bits="W4A4", cls=None, **settings):
    method = (cls or METHODS.get(name)).create(FAST | settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


def _weight(bits=4):
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(1), weight.amax(1))
    return weight, quantizer


@torch.no_grad()
def test_segments_are_the_model_and_hold_every_operation_once(tiny, images):
    wrapped = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    x = images
    for segment in wrapped.structure.segments:
        x = segment.run(x)
    torch.testing.assert_close(x, tiny(images), rtol=0, atol=1e-5)
    inside = [op for segment in wrapped.structure.segments for op in segment.operations]
    assert inside == wrapped.operations
    blocks = [s.name for s in wrapped.structure.segments if s.kind == "block"]
    assert blocks == wrapped.structure.blocks


def test_soft_rounding_starts_at_the_weight_and_hard_rounding_is_within_a_step():
    weight, quantizer = _weight()
    learned = LearnedRounding(quantizer, weight)
    limits = [quantizer.dequantize(torch.full_like(weight, c).int()) for c in quantizer.code_range]
    inside = torch.clamp(weight, *limits)
    torch.testing.assert_close(learned(weight), inside, rtol=0, atol=1e-5)
    with torch.no_grad():
        learned.alpha.normal_(generator=torch.Generator().manual_seed(1))
    hard = quantizer.dequantize(learned.codes(weight))
    assert ((hard - inside).abs() <= quantizer.scale[:, None] * (1 + 1e-4)).all()


def test_trained_weight_starts_as_plain_rounding_and_passes_gradients():
    weight, quantizer = _weight()
    learned = LearnedOffset(quantizer, weight)
    torch.testing.assert_close(learned(weight), quantizer.fake_quantize(weight))
    learned(weight).sum().backward()
    assert (learned.trained.grad == 1).float().mean() > 0.9  # 0 where the code is clipped
    assert torch.equal(learned.codes(weight), quantizer.quantize(weight))


def test_step_gradient_is_that_of_lsq_and_drop_probabilities_hold():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(3), "x")
    quantizer.set_range(x.amin().reshape(1) / 2, x.amax().reshape(1) / 2)
    learned = LearnedStep(quantizer, torch.Generator().manual_seed(0))
    torch.testing.assert_close(learned(x), quantizer.fake_quantize(x))
    learned(x).sum().backward()
    # Esser et al. 2020, equation 3, with a zero point: inside round(x/s) - x/s, outside the code.
    scale, zero, high = quantizer.scale, quantizer.zero_point, 7
    codes = torch.round(x / scale) + zero
    inside = (codes >= 0) & (codes <= high)
    gradient = torch.where(
        inside, torch.round(x / scale) - x / scale, codes.clamp(0, high) - zero
    ).sum()
    expected = gradient / (x.numel() * high) ** 0.5
    torch.testing.assert_close(learned.step.grad, expected.reshape(1), rtol=1e-4, atol=1e-5)
    learned.keep = 0.0
    assert torch.equal(learned(x), x)
    learned.keep = 0.5
    quantized = (learned(x) == quantizer.fake_quantize(x)).float().mean()
    assert 0.35 < quantized < 0.65


def test_prediction_term_matches_finite_differences_and_leaves_the_rest_alone(vit, images):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    segments = wrapped.structure.segments
    with torch.no_grad():
        target = segments[1].run(segments[0].run(images))

        def rest(x):
            return engine._run_all(segments[2:], x)

        logits = rest(target)

    def value(output):
        batch = Batch(output=output, target=target, rest=rest, logits=logits, clean=output)
        return PredictionDivergence()(batch)

    assert abs(float(value(target))) < 1e-6
    generator = torch.Generator().manual_seed(0)
    output = target + 0.3 * torch.randn(target.shape, generator=generator)
    moving = output.clone().requires_grad_()
    value(moving).backward()
    direction = moving.grad / moving.grad.norm()
    slope = float(moving.grad.norm())
    step = 0.1
    with torch.no_grad():
        measured = float(value(output + step * direction) - value(output - step * direction))
    assert slope == pytest.approx(measured / (2 * step), rel=0.02)
    assert all(p.grad is None for p in wrapped.parameters())


def test_local_term_is_zero_at_the_target_and_reaches_every_tap():
    generator = torch.Generator().manual_seed(0)
    targets = {
        n: s * torch.randn(2, 5, 8, generator=generator) for n, s in (("a", 1.0), ("b", 1e-3))
    }
    moved = {n: (1.1 * t).requires_grad_() for n, t in targets.items()}

    def value(inner):
        x = torch.zeros(1)
        batch = Batch(x, x, lambda y: y, x, inner=inner, inner_target=targets)
        return LocalDivergence()(batch)

    assert abs(float(value(targets))) < 1e-6
    value(moved).backward()
    # Scaled by the output's own size, a small layer counts as much as a large one.
    sizes = [float((moved[n].grad * targets[n].std()).norm()) for n in targets]
    assert sizes[0] > 0 and 0.2 < sizes[1] / sizes[0] < 5


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_lower_after_reconstruction(name, vit, calibration):
    """Each block's output error on all images, with the learned quantizers made hard."""
    before, after = [], []
    plain = _quantize(name, vit, calibration, "W3A3", iterations=0)
    learned = _quantize(
        name, vit, calibration, "W3A3", iterations=60, learn="weights", weight_rate=2e-3
    )
    images = calibration.whole()
    with torch.no_grad():
        exact = wrap_model(vit, equal_table(BitWidth(32, 32))).structure.segments
        for model, found in ((plain, before), (learned, after)):
            x, y = images, images
            for segment, original in zip(model.structure.segments, exact, strict=True):
                x, y = segment.run(x), original.run(y)
                found.append(float((x - y).square().sum(-1).mean()))
    assert after[1] < before[1] and after[2] < before[2]
    assert after[-1] < before[-1]


def test_without_its_terms_mgrq_is_qdrop(vit, images, calibration):
    class Bare(METHODS.get("mgrq")):
        schemes = {}

    bare = _quantize("mgrq", vit, calibration, cls=Bare, global_weight=0.0, local_weight=0.0)
    qdrop = _quantize("qdrop", vit, calibration)
    assert torch.equal(bare(images), qdrop(images))
    full = _quantize("mgrq", vit, calibration, cls=Bare)
    assert not torch.equal(full(images), qdrop(images))
    repq = _quantize("mgrq", vit, calibration, block=False)
    reference = METHODS.get("repq-vit").create({})
    table = reference.bit_table(BitWidth(4, 4))
    assert torch.equal(repq(images), reference.quantize(vit, table, calibration)(images))
    words = [METHODS.get("mgrq").create({"block": on}).convention(table) for on in (True, False)]
    assert ["trains" in text for text in words] == [True, False]


@pytest.mark.parametrize("learn", ["rounding", "weights"])
def test_a_unit_whose_loss_is_not_finite_keeps_its_calibration(
    learn, vit, images, calibration, monkeypatch, caplog
):
    calls = []

    def broken(self, batch):
        calls.append(1)
        value = (batch.output - batch.target).square().mean()
        return value * float("nan") if len(calls) == 15 else value  # second unit, fifth iteration

    monkeypatch.setattr(BlockError, "__call__", broken)
    with caplog.at_level(logging.WARNING):
        model = _quantize("brecq", vit, calibration, learn=learn, weight_rate=1e-2)
    assert "blocks.0: the loss was not finite in iteration 4" in caplog.text
    assert torch.isfinite(model(images)).all()
    plain = METHODS.get("brecq").create(FAST | {"iterations": 0})
    untouched = plain.quantize(vit, plain.bit_table(BitWidth(4, 4)), calibration)
    assert torch.equal(
        model.module.blocks[0].mlp.fc1.codes, untouched.module.blocks[0].mlp.fc1.codes
    )
    assert not torch.equal(
        model.module.blocks[1].mlp.fc1.codes, untouched.module.blocks[1].mlp.fc1.codes
    )
