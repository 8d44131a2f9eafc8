"""The vectorised arithmetic against torch's own operators and against plain autograd, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    choose,
    extremes,
    fake_quantize,
    round_through,
    scale_and_zero_point,
    spread,
    trainable_fake_quantize,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

SEEDS = st.integers(0, 2**16)
RANGES = st.sampled_from([(0, 7), (0, 15), (0, 255), (-8, 7), (-128, 127)])


def _drawn(seed: int, code_range: tuple[int, int], groups: int):
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(5, 12, 33, generator=generator)
    scale = torch.rand(groups, generator=generator) + 0.02
    low, high = code_range
    zero_point = torch.randint(low, high + 1, (groups,), generator=generator, dtype=torch.int32)
    return x, scale, zero_point


def _gradient_through(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (y * torch.arange(y.numel()).view(y.shape).cos()).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, code_range=RANGES)
def test_one_scale_as_torch(seed, code_range):
    x, scale, zero_point = _drawn(seed, code_range, 1)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *code_range)
    assert torch.equal(fake_quantize(x, scale, zero_point, code_range), expected)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, code_range=RANGES, axis=st.sampled_from([0, 1, 2]))
def test_a_scale_per_channel_as_torch_with_its_gradient(seed, code_range, axis):
    sizes = (5, 12, 33)
    x, scale, zero_point = _drawn(seed, code_range, sizes[axis])
    shape = [1, 1, 1]
    shape[axis] = -1

    def ours(x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, scale.view(shape), zero_point.view(shape), code_range)

    def torchs(x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, *code_range)

    for found, expected in zip(
        _gradient_through(ours, x), _gradient_through(torchs, x), strict=True
    ):
        assert torch.equal(found, expected)


def _grid(seed: int, bits: int, axis: int | None, groups: int, symmetric: bool):
    """A quantizer whose zero points are codes, as torch's operators ask, and values for it."""
    granularity = "tensor" if axis is None else "channel"
    quantizer = UniformQuantizer(TensorSpec(bits, granularity, symmetric=symmetric), "site", axis)
    x, scale, zero_point = _drawn(seed, quantizer.code_range, groups)
    quantizer.set_parameters(scale, torch.zeros_like(zero_point) if symmetric else zero_point)
    return quantizer, x


GRIDS = [(None, 1), (0, 5), (1, 12), (1, 3), (-1, 33), (-1, 11)]
"""Axis and groups on tensors of 5 x 12 x 33; fewer groups than entries are blocks of them, as heads are."""


@pytest.mark.parametrize(("axis", "groups"), GRIDS)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, bits=st.sampled_from([3, 4, 8]), symmetric=st.booleans())
def test_what_a_gpu_takes_is_what_a_cpu_takes(axis, groups, seed, bits, symmetric):
    """The branch for CUDA, torch's fused operators, on tensors of the CPU; with its gradient."""
    quantizer, x = _grid(seed, bits, axis, groups, symmetric)
    assert quantizer._is_fusible(), "else it is for no device"
    fused, vectorised = (
        _gradient_through(function, x) for function in (quantizer._fused, quantizer.fake_quantize)
    )
    for found, expected in zip(fused, vectorised, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("axis", "groups"), GRIDS)
def test_a_gpu_comes_to_the_same_bits(axis, groups):
    quantizer, x = _grid(0, 4, axis, groups, symmetric=False)
    expected = quantizer.fake_quantize(x)
    assert torch.equal(quantizer.to("cuda").fake_quantize(x.to("cuda")).cpu(), expected)


def _plain(x, scale, zero_point, low, high):
    """LSQ as autograd sees it, operator by operator."""
    quotient = x / scale
    rounded = quotient + (quotient.round() - quotient).detach()
    return ((rounded + zero_point).clamp(low, high) - zero_point) * scale


@pytest.mark.parametrize("shape", [(1,), (1, 1, 33), (5, 12, 1)])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, code_range=RANGES)
def test_learned_parameters_get_the_gradients_of_autograd(shape, seed, code_range):
    x, scale, zero_point = _drawn(seed, code_range, int(torch.tensor(shape).prod()))
    found = []
    for function in (
        lambda x, s, z: trainable_fake_quantize(x, s, z, code_range),
        lambda x, s, z: _plain(x, s, z, *code_range),
    ):
        leaves = [
            v.clone().requires_grad_()
            for v in (x, scale.view(shape), zero_point.float().view(shape))
        ]
        y = function(*leaves)
        (y * torch.arange(y.numel()).view(y.shape).cos()).sum().backward()
        found.append([y, *(leaf.grad for leaf in leaves)])
    for ours, autograds in zip(*found, strict=True):
        assert torch.equal(ours, autograds)


@pytest.mark.parametrize("dims", [(0, 1, 2), (-1,), (0, 2)])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, ties=st.booleans())
def test_extremes_get_the_gradients_of_amin_and_amax(dims, seed, ties):
    x, _, _ = _drawn(seed, (0, 7), 1)
    if ties:
        x = x.round()
    found = []
    for function in (
        lambda x: extremes(x, dims),
        lambda x: (x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)),
    ):
        leaf = x.clone().requires_grad_()
        low, high = function(leaf)
        (
            (1 + torch.arange(low.numel()).view(low.shape).sin()) * (low * high + high)
        ).sum().backward()
        found.append((low, high, leaf.grad))
    for ours, autograds in zip(*found, strict=True):
        assert torch.equal(ours, autograds)


def test_only_what_is_asked_for_gets_a_gradient():
    x, scale = torch.randn(7), torch.ones(1).requires_grad_()
    trainable_fake_quantize(x, scale, torch.zeros(1), (-2, 1)).sum().backward()
    assert scale.grad is not None and x.grad is None


def test_zero_points_outside_the_codes_pass_gradients_too():
    x = torch.tensor([5.2, 6.1, 30.0])
    _, gradient = _gradient_through(
        lambda x: fake_quantize(x, torch.ones(1), torch.tensor([-5]), (0, 15), divide=True), x
    )
    assert torch.equal(gradient, torch.tensor([1.0, torch.tensor(1.0).cos(), 0.0]))


def test_zero_points_that_are_no_whole_numbers_pass_gradients_too():
    x = torch.linspace(-2, 20, 45).repeat(2, 1)
    zero_point = torch.tensor([[0.3], [0.7]])
    _, gradient = _gradient_through(
        lambda x: fake_quantize(x, torch.ones(2, 1), zero_point, (0, 15), divide=True), x
    )
    inside = (x.round() >= -zero_point) & (x.round() + zero_point <= 15)
    assert torch.equal(gradient != 0, inside)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_choose_is_exact_and_differentiable(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(257, generator=generator).requires_grad_() for _ in range(2))
    chosen = torch.rand(257, generator=generator) < 0.5
    y = choose(chosen.float(), first, second)
    assert torch.equal(y, torch.where(chosen, first, second))
    y.sum().backward()
    assert torch.equal(first.grad, chosen.float()) and torch.equal(second.grad, (~chosen).float())


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, bits=st.integers(2, 8), symmetric=st.booleans())
def test_a_range_gives_one_grid_whoever_asks(seed, bits, symmetric):
    x, _, _ = _drawn(seed, (0, 7), 1)
    low, high = x.amin((0, 1)), x.amax((0, 1))
    scale, zero_point = scale_and_zero_point(low, high, bits, symmetric)
    leaves = [end.clone().requires_grad_() for end in (low, high)]
    trained = scale_and_zero_point(*leaves, bits, symmetric, round_through)
    static = UniformQuantizer(TensorSpec(bits, "channel", symmetric), "x", axis=2)
    static.set_range(low, high)
    for found in (trained, (static.scale, static.zero_point)):
        assert torch.equal(found[0], scale)
        assert torch.equal(found[1], zero_point)
    sum(value.sum() for value in trained).backward()
    assert all((leaf.grad != 0).any() for leaf in leaves)
    levels = 2**bits - 1
    width = scale * levels
    expected = 2 * torch.maximum(low.abs(), high.abs()) if symmetric else high - low
    torch.testing.assert_close(width, expected)


@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_values_are_spread_over_equal_blocks_of_the_axis(axis, groups):
    x = torch.zeros(6, 6, 6)
    values = torch.arange(1.0, groups + 1)
    found = (x + spread(values, x, axis)).movedim(axis or 0, 0)
    expected = torch.tensor([float(entry * groups // 6 + 1) for entry in range(6)])
    assert torch.equal(found, expected[:, None, None].expand(6, 6, 6))
