"""The progressive search of two numbers, against all of a fine grid; its errors, against computed outputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped, minmax_rule
from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.model.layers import QuantConv2d, QuantLinear, QuantMatMul
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.search.output_error import (
    QuadraticError,
    operand_of,
    search_progressively,
)
from vit_ptq_bench.methods.quantization.search.progressive import (
    Progression,
    progressive_rule,
    search_own,
)

FEW = Progression(steps=2)


def _skewed(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(x > 0, 3 * x**3, x)


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("is_weight", [True, False])
def test_scale_and_zero_point_are_nearly_the_best_of_all(bits, is_weight):
    x = _skewed(2, 1000, seed=bits)
    quantizer = build_quantizer(TensorSpec(bits, "channel"), "x", axis=0)
    search_own(quantizer, x, Progression(), is_weight)
    found = (quantizer.fake_quantize(x) - x).double().square().sum(1).numpy()
    for row, error in zip(x.double().numpy(), found, strict=True):
        top = (row.max() - row.min()) / (2**bits - 1)
        best = min(
            np.square(s * (np.clip(np.rint(row / s) + z, 0, 2**bits - 1) - z) - row).sum()
            for s in top * np.linspace(0.05, 1, 60)
            for z in range(2**bits)
        )
        assert error <= 1.03 * best


@pytest.mark.parametrize("scheme", ["shifted-log", "shifted-adalog"])
def test_base_and_scale_are_nearly_the_best_of_all(scheme):
    x = torch.nn.functional.gelu(_skewed(1000, seed=7) / 3).clamp_max(15)
    quantizer = build_quantizer(TensorSpec(4, scheme=scheme), "x")
    search_own(quantizer, x, Progression(), is_weight=False)

    def error(scale, steps):
        quantizer.set_levels(torch.tensor([scale]), torch.tensor([steps]))
        return float((quantizer.fake_quantize(x) - x).double().square().sum())

    found = error(float(quantizer.scale), float(quantizer.steps()))
    top = float(x.max()) + quantizer.shift
    best = min(error(top * s, 37 / q) for s in np.linspace(0.1, 1, 16) for q in range(10, 139, 8))
    assert found <= 1.03 * best


def test_each_group_is_searched_for_itself_and_steps_never_hurt():
    x = _skewed(3, 500) * torch.tensor([[0.1], [1.0], [20.0]])
    errors = []
    for steps in range(4):
        quantizer = build_quantizer(TensorSpec(4, "channel"), "x", axis=0)
        search_own(quantizer, x, Progression(steps=steps), is_weight=True)
        errors.append((quantizer.fake_quantize(x) - x).square().sum(1))
        alone = build_quantizer(TensorSpec(4), "x")
        search_own(alone, x[2:], Progression(steps=steps), is_weight=True)
        torch.testing.assert_close(alone.scale, quantizer.scale[2:])
    assert (torch.stack(errors).diff(dim=0) <= 1e-4).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_rule_beats_the_extreme_values_and_survives_constants(symmetric):
    sites = [
        Site("x", "qkv.input", build_quantizer(TensorSpec(4, symmetric=symmetric), "x"), None)
        for _ in range(2)
    ]
    x = _skewed(5, 800)
    progressive_rule()(sites[0], x)
    minmax_rule(sites[1], x)
    errors = [float((s.quantizer.fake_quantize(x) - x).square().sum()) for s in sites]
    assert errors[0] < errors[1]
    constant = torch.full((1, 50), 3.0)
    progressive_rule()(sites[0], constant)
    assert (sites[0].quantizer.fake_quantize(constant) - constant).abs().max() < 0.3
    assert sites[0].quantizer.scale > 0.1


def test_a_form_of_one_number_is_refused_by_site():
    quantizer = build_quantizer(TensorSpec(4, scheme="log2"), "blocks.0.attention")
    with pytest.raises(MethodError, match=r"blocks\.0\.attention: a LogQuantizer has no pair"):
        search_own(quantizer, torch.rand(2, 50), FEW, is_weight=False)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    outputs=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_the_quadratic_form_is_the_error_of_the_output(rows, columns, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    m, e = (torch.randn(2, rows, columns, generator=generator) for _ in range(2))
    f, g = (torch.randn(2, outputs, columns, generator=generator) for _ in range(2))
    form = QuadraticError(m, f, g)

    def error(change):
        return ((m + change) @ g.mT - m @ f.mT).double().square().sum(-1)

    expected = error(e) - error(torch.zeros_like(e))
    torch.testing.assert_close(form.whole(e).double(), expected, rtol=1e-3, atol=1e-3)
    single = torch.zeros_like(e)
    single[..., seed % columns] = e[..., seed % columns]  # one column alone: nothing is neglected
    torch.testing.assert_close(form.rough(single), form.whole(single), rtol=1e-3, atol=1e-3)


def _layer(kind, bits=4):
    torch.manual_seed(1)
    table = equal_table(BitWidth(bits, bits))
    if kind == "conv":
        conv = QuantConv2d(torch.nn.Conv2d(3, 8, 4, 4), "patch", "patch_embed", table)
        return conv, (torch.randn(6, 3, 16, 16),)
    if kind == "linear":
        return QuantLinear(torch.nn.Linear(24, 16), "l", "proj", table), (_skewed(5, 30, 24),)
    granularity = "head" if kind.endswith("head") else "tensor"
    for key in ("query", "key", "attention", "value"):
        table = table.change(key, granularity=granularity)
    table = table.change("attention", scheme="adalog")
    q, k, v = (_skewed(3, 2, 12, 8, seed=s) for s in range(3))
    if kind.startswith("scores"):
        return QuantMatMul("s", "scores", ("query", "key"), table, transposed=True), (q, k)
    product = QuantMatMul("c", "context", ("attention", "value"), table, transposed=False)
    return product, ((q @ k.mT / 3).softmax(-1), v)


KINDS = ["conv", "linear", "scores", "scores-head", "context", "context-head"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_errors_of_candidates_are_those_of_the_operation(kind):
    """Differences between candidates are those of outputs that the operation itself computes."""
    operation, inputs = _layer(kind)
    recording = Recording(inputs, operation.compute(*operation.operands(inputs)), None)
    search_progressively(operation, recording, FEW, rounds=1)
    tensors = operation.operands(inputs)
    quantizers = list(operation.quantizers().values())
    for which in (0, 1):
        quantizer = quantizers[which]
        own = operand_of(operation, tensors, which)
        second = quantizer.steps() if hasattr(quantizer, "steps") else quantizer.zero_point.float()
        pairs = torch.stack([quantizer.scale, quantizer.scale * 0.7]), torch.stack([second] * 2)
        estimated = own.errors(pairs)
        assert estimated.shape == (2, len(quantizer.scale))
        found = []
        for scale in pairs[0]:
            if hasattr(quantizer, "steps"):
                quantizer.set_levels(scale, second)
            else:
                quantizer.set_parameters(scale, second)
            moving = quantizer.fake_quantize(tensors[which])
            fixed = quantizers[1 - which].fake_quantize(tensors[1 - which])
            output = operation.compute(*((moving, fixed) if which == 0 else (fixed, moving)))
            error = (output - recording.output).square()
            groups = len(scale)
            by_axis = error.movedim(operation.output_axis, 0).flatten(1).sum(1)
            total = by_axis if groups > 1 else by_axis.sum()
            found.append(total.view(groups, -1).sum(1))
        torch.testing.assert_close(
            estimated[1] - estimated[0], found[1] - found[0], rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_output_is_nearer_than_after_each_operands_own_search(kind):
    errors = []
    for rounds in (0, 2):
        operation, inputs = _layer(kind, bits=3)
        true = operation.compute(*operation.operands(inputs))
        search_progressively(operation, Recording(inputs, true, None), FEW, rounds)
        for quantizer in operation.quantizers().values():
            assert quantizer.problem() is None and quantizer.scale.numel()
            quantizer.active = True
        errors.append(float((operation(*inputs) - true).square().sum()))
    assert errors[1] <= errors[0] * 1.001


@torch.no_grad()
def test_an_input_with_a_scale_per_channel_keeps_its_own():
    operation, inputs = _layer("linear")
    spec = TensorSpec(4, "channel")
    alone = build_quantizer(spec, "l.input", axis=-1)
    operation.input_quantizer = build_quantizer(spec, "l.input", axis=-1)
    true = operation.compute(*operation.operands(inputs))
    search_progressively(operation, Recording(inputs, true, None), FEW, rounds=2)
    search_own(alone, inputs[0], FEW, is_weight=False)
    assert torch.equal(alone.scale, operation.input_quantizer.scale)
    assert len(grouped(inputs[0], alone)) == 24


@torch.no_grad()
@pytest.mark.parametrize("odd", range(0, 16, 5))
def test_an_image_with_long_keys_is_looked_at(odd):
    """Scores are judged on rows of all sixteen images, not on all rows of a few."""
    table = equal_table(BitWidth(4, 4))
    q, k = (torch.randn(16, 3, 197, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    scales = []
    for size in (1, 6):
        k[odd] *= size
        scores = QuantMatMul("s", "scores", ("query", "key"), table, transposed=True)
        search_progressively(scores, Recording((q, k), q @ k.mT, None), FEW, rounds=1)
        scales.append(float(scores.second_quantizer.scale))
    assert scales[1] > 2 * scales[0]
