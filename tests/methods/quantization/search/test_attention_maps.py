"""Grids of attention maps, against all candidates one by one."""

import itertools

import pytest
import torch

from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul
from vit_ptq_bench.methods.quantization.search.attention_maps import (
    LogGrid,
    has_log_map,
    has_uniform_map,
    search_log_map,
    search_maps,
)


def _product(bits, scheme, granularity="tensor"):
    table = equal_table(BitWidth(bits, bits))
    table = table.change("attention", scheme=scheme, granularity=granularity)
    return QuantMatMul("p", "context", ("attention", "value"), table, transposed=False)


def _operands(images=3, heads=2, tokens=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, heads, tokens, tokens, generator=generator)
    logits[:, 0] *= 2
    return logits.softmax(-1), torch.randn(images, heads, tokens, 8, generator=generator)


def _error(product, scale, k, operands):
    product.first_quantizer.set_levels(scale, k)
    first, second = operands
    error = product.first_quantizer.fake_quantize(first).double() @ second.double()
    return (error - first.double() @ second.double()).square().sum((0, 2, 3))


@pytest.mark.parametrize("scheme", ["log", "adalog"])
@pytest.mark.parametrize("granularity", ["tensor", "head"])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_best_of_all_candidates_by_the_product(scheme, granularity, bits):
    product, operands, grid = _product(bits, scheme, granularity), _operands(), LogGrid()
    search_log_map(product, operands, grid)
    quantizer = product.first_quantizer
    found = _error(product, quantizer.scale.clone(), quantizer.steps().clone(), operands)
    heads = 2 if granularity == "head" else 1
    top = operands[0].amax((0, 2, 3)) if heads == 2 else operands[0].max().reshape(1)
    tried = torch.stack(
        [
            _error(product, top * share, torch.full((heads,), k), operands)
            for k, share in itertools.product(grid.steps_at(bits), grid.shares)
        ]
    )
    best = tried.amin(0) if heads == 2 else tried.sum(1).amin().reshape(1)
    torch.testing.assert_close(
        found if heads == 2 else found.sum().reshape(1), best, rtol=1e-5, atol=0
    )


def test_the_maps_own_error_would_choose_another_grid():
    """Many small entries carry much of the mass, and count little in the map's own squared error."""
    first, second = _operands(tokens=200)
    largest = torch.linspace(0.3, 0.5, 200)
    first = ((1 - largest) / 199)[:, None].expand(first.shape).clone()
    first.diagonal(dim1=-2, dim2=-1).copy_(largest)
    second = 1 + second / 10
    product, grid = _product(4, "log"), LogGrid()
    search_log_map(product, (first, second), grid)
    quantizer = product.first_quantizer
    chosen = float(quantizer.scale), float(quantizer.steps_per_octave)

    def own(pair):
        quantizer.set_levels(torch.tensor([pair[0]]), torch.tensor([pair[1]]))
        return float((quantizer.fake_quantize(first) - first).square().sum())

    pairs = itertools.product([float(first.max()) * s for s in grid.shares], grid.steps_at(4))
    assert min(pairs, key=own) != chosen


def test_only_a_few_images_are_looked_at():
    first, second = _operands(images=9, heads=2, tokens=200)
    product = _product(4, "log")
    looked_at = []
    product.first_quantizer.fake_quantize = lambda x: looked_at.append(x) or x
    search_log_map(product, (first, second))
    assert {len(x) for x in looked_at} == {3}
    assert torch.equal(looked_at[0], first[::3])


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["log", "adalog", "uniform", "log-sqrt2"])
def test_search_maps_sets_the_maps_it_knows(scheme, tiny, images):
    model = wrap_model(tiny, equal_table(BitWidth(4, 4)).change("attention", scheme=scheme))
    search_maps(model.operations, lambda: model(images))
    products = [op for op in model.operations if op.role == "context"]
    known = scheme != "log-sqrt2"
    assert products and all(op.first_quantizer.initialised == known for op in products)
    assert all(has_log_map(op) == (scheme in ("log", "adalog")) for op in products)
    assert all(has_uniform_map(op) == (scheme == "uniform") for op in products)
    assert not any(op._forward_pre_hooks for op in products)
