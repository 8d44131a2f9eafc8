"""APQ-ViT: bottom elimination, replay, and the search on a block's output."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.passes import calibrate_weights
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.calibration.segment_recording import record_segments
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.search.blockwise import BlockwiseSearch, _look, replayed
from vit_ptq_bench.methods.quantization.search.candidates import Grid
from vit_ptq_bench.methods.quantization.search.scores import bottom_eliminated

GENERATOR = torch.Generator().manual_seed(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 10.0, 30.0, 50.0]))
def test_elimination_takes_the_smallest_of_each_image(seed, percent):
    generator = np.random.default_rng(seed)
    # Few distinct values, so that there are ties.
    error = generator.integers(-5, 6, (3, 4, 5)).astype(np.float32)
    found = bottom_eliminated(torch.from_numpy(error), percent).numpy()
    for one, kept in zip(error, found, strict=True):
        ordered = np.sort(np.abs(one).ravel())
        threshold = ordered[int(20 * percent / 100)]
        assert np.array_equal(kept, np.where(np.abs(one) < threshold, 0, one))
        assert (kept == 0).sum() <= max(20 * percent / 100, (one == 0).sum())


def test_elimination_does_not_depend_on_the_batch():
    error = torch.randn(6, 7, 8, generator=GENERATOR)
    together = bottom_eliminated(error, 10.0)
    apart = torch.cat([bottom_eliminated(one, 10.0) for one in error.split(1)])
    assert torch.equal(together, apart)
    assert (together == 0).flatten(1).sum(1).tolist() == [5] * 6  # 10 % of 56


@torch.no_grad()
def test_replay_gives_what_a_full_run_gives(tiny, images):
    wrapped = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    index, segment = next(
        (i, s) for i, s in enumerate(wrapped.structure.segments) if s.kind == "block"
    )
    x = images
    for earlier in wrapped.structure.segments[:index]:
        x = earlier.run(x)
    full = segment.run(x)
    for operation in segment.operations:
        look = _look(segment, x, operation)
        half = next(part for part in segment.halves if operation in part.operations)
        assert list(look.before) == list(half.operations[: half.operations.index(operation)])
        with replayed(look.before):
            # Not to the digit: an idle attention product is computed fused (see `QuantMatMul.idle`).
            torch.testing.assert_close(look.finish(), full, rtol=0, atol=1e-5)
        assert torch.equal(operation(*look.inputs), operation(*look.inputs))
    assert torch.equal(segment.run(x), full)
    assert not any("forward" in vars(op) for op in segment.operations)


def test_matthew_effect_preserving_quantizer_uses_all_levels_and_keeps_the_largest():
    p = torch.randn(2, 3, 6, 6, generator=GENERATOR).mul(4).softmax(-1)
    table = METHODS.get("apq-vit").create().bit_table(BitWidth(4, 4), "authors")
    assert table["attention"].granularity == "head" and not table["attention"].symmetric
    quantizer = UniformQuantizer(TensorSpec(4, "head"), "attention", axis=1)
    largest = p.amax(dim=(0, 2, 3))
    quantizer.set_range(torch.zeros(3), largest)
    values = quantizer.fake_quantize(p)
    torch.testing.assert_close(values.amax(dim=(0, 2, 3)), largest)
    codes = quantizer.dequantize(
        torch.arange(16, dtype=torch.int32).view(1, 1, 1, 16).expand(1, 3, 1, 16)
    )
    torch.testing.assert_close(codes[0, :, 0, -1], largest)
    assert (codes >= 0).all() and len(codes[0, 0, 0].unique()) == 16


@pytest.mark.parametrize("percent", [0.0, 10.0])
@torch.no_grad()
def test_the_weighted_error_of_a_block_is_not_above_that_of_min_max(percent, vit, calibration):
    def error(calibrate):
        model = wrap_model(vit, equal_table(BitWidth(3, 4)))
        recording = record_segments(model, calibration, fisher_loss, 2, 4)[1]
        segment = model.structure.segments[1]
        calibrate(model, segment, recording)
        for operation in segment.operations:
            for quantizer in operation.quantizers().values():
                quantizer.active = True
        left = bottom_eliminated(segment.run(recording.inputs) - recording.output, percent)
        return float((left.square() * recording.squared_gradient).sum())

    def minmax(model, segment, recording):
        calibrate_weights(model, minmax_rule)
        search = BlockwiseSearch(
            lambda op, operand: Grid(1.0, 2.0, 1), percent, 1, True, "exhaustive"
        )
        search.run(segment, recording)

    def searched(model, segment, recording):
        # The grid holds the factor 1, so that the first choice is never worse.
        search = BlockwiseSearch(
            lambda op, operand: Grid(0.7, 1.1, 40), percent, 3, True, "exhaustive"
        )
        search.run(segment, recording)

    assert error(searched) < 0.9 * error(minmax)


@torch.no_grad()
def test_each_head_has_the_factor_that_is_best_for_the_block(vit, calibration):
    """Against every pair of factors of two heads, the values alone being quantized."""
    vit.blocks[0].attn.qkv.weight[64] *= 6  # one channel of the first head's values
    table = equal_table(BitWidth(32, 32)).change("value", bits=3, granularity="head")
    model = wrap_model(vit, table)
    recording = record_segments(model, calibration, fisher_loss, 2, 4)[1]
    segment = model.structure.segments[1]
    product = next(op for op in segment.operations if op.role == "context")
    grid = Grid(0.2, 1.1, 12, logarithmic=True)
    quantizer, seen = product.second_quantizer, []
    handle = product.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    segment.run(recording.inputs)
    handle.remove()
    low, high = seen[0].amin((0, 2, 3)), seen[0].amax((0, 2, 3))

    def error(first, second):
        factors = grid.factors()[[first, second]]
        quantizer.set_range(low * factors, high * factors)
        left = (segment.run(recording.inputs) - recording.output).square()
        return float((left * recording.squared_gradient).sum())

    quantizer.active = True
    errors = np.array([[error(i, j) for j in range(12)] for i in range(12)])
    quantizer.active = False
    alone = replace(segment, operations=(product,), halves=())
    BlockwiseSearch(lambda op, operand: grid, 0.0, 3, True, "exhaustive").run(alone, recording)
    steps = grid.factors()[:, None] * (high - low) / 7
    found = tuple((steps - quantizer.scale).abs().argmin(0).tolist())
    assert errors[found] == pytest.approx(errors.min(), rel=0.02)
    assert errors[found] < errors.diagonal().min() or found[0] == found[1]


def test_a_logarithmic_grid_has_equal_ratios():
    factors = Grid(1 / 128, 1.0, 15, logarithmic=True).factors()
    torch.testing.assert_close(factors, 2.0 ** (-7 + torch.arange(15) / 2))
    assert Grid(0.2, 0.9, 1, logarithmic=True).factors() == 0.9


@torch.no_grad()
def test_a_scale_far_too_small_loses(vit, calibration):
    model = wrap_model(vit, equal_table(BitWidth(8, 8)))
    recording = record_segments(model, calibration, fisher_loss, 1, 8)[1]
    segment = model.structure.segments[1]
    search = BlockwiseSearch(lambda op, operand: Grid(0.01, 1.99, 2), 10.0, 1, True, "exhaustive")
    search.run(segment, recording)  # factors 0.01 and 1.0
    for operation in segment.operations:
        if operation.role in ("qkv", "proj", "fc1", "fc2"):
            low, high = torch.aminmax(operation.weight, dim=1)
            expected = (high - low) / 255
            torch.testing.assert_close(operation.weight_quantizer.scale, expected)


@torch.no_grad()
def test_recordings_are_those_of_the_model_and_no_gradient_is_an_error(vit, images, calibration):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    recordings = record_segments(model, calibration, fisher_loss, 1, 3)
    torch.testing.assert_close(recordings[-1].output, vit(images), rtol=0, atol=1e-5)
    for earlier, later in itertools.pairwise(recordings):
        assert torch.equal(earlier.output, later.inputs)
    vit.head.weight.zero_()
    dead = wrap_model(vit, equal_table(BitWidth(4, 4)))
    with pytest.raises(MethodError, match="the loss has no gradient"):
        record_segments(dead, calibration, fisher_loss, 1, 8)


def test_scopes_and_orders_differ_and_all_are_finite(vit, images, calibration):
    found = []
    for changes in ({}, {"scope": "module"}, {"order": "forward"}, {"eliminate": 50.0}):
        method = METHODS.get("apq-vit").create({"rounds": 1, "draws": 1, "steps": 20} | changes)
        model = method.quantize(vit, method.bit_table(BitWidth(3, 3)), calibration)
        with torch.no_grad():
            found.append(model(images))
    assert all(torch.isfinite(output).all() for output in found)
    assert all(not torch.equal(found[0], other) for other in found[1:])


@torch.no_grad()
def test_what_is_not_searched_again_would_not_change(vit, calibration):
    """Against a search that forgets what it has seen."""
    recording = None
    found = []
    for forgetful in (False, True):
        model = wrap_model(vit, equal_table(BitWidth(4, 4)))
        recording = recording or record_segments(model, calibration, fisher_loss, 2, 4)[1]
        segment = model.structure.segments[1]
        search = BlockwiseSearch(
            lambda op, operand: Grid(0.4, 1.1, 12), 10.0, 3, True, "coarse-to-fine"
        )
        if forgetful:
            vars(search)["_operation"] = _forgetting(search._operation)
        search.run(segment, recording)
        found.append([q.scale for op in segment.operations for q in op.quantizers().values()])
    for seen, anew in zip(*found, strict=True):
        assert torch.equal(seen, anew)


def _forgetting(search):
    def forget(operation, state):
        state.seen.clear()
        search(operation, state)

    return forget
