"""Tables of levels: nearest levels, and a uniform table that is the uniform quantizer to the bit."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization import (
    FORMS,
    BitWidth,
    TensorSpec,
    load_quantized,
    register_form,
    save_quantized,
)
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, equal_table
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    LevelGrid,
    RowGrid,
    compensated_codes,
    grid_of,
    second_moment,
)
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import scale_and_zero_point
from vit_ptq_bench.methods.quantization.quantizers.levels import LevelQuantizer, TableQuantizer
from vit_ptq_bench.methods.quantization.quantizers.tangent import TangentQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.level_rounding import (
    TrainableLevelOffset,
    TrainableLevelRounding,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableOffset,
    TrainableRounding,
)


class UniformTable(TableQuantizer):
    """The codes of a symmetric uniform grid as a table."""

    mirrored = False

    @classmethod
    def candidates(cls, bits: int) -> Tensor:
        return torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).float()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        scale, _ = scale_and_zero_point(low, high, self.spec.bits, True)
        self.set_levels(self.candidates(self.spec.bits), scale)


class RowTables(LevelQuantizer):
    """Any levels, of each row its own."""

    def give(self, table: Tensor, scale: Tensor) -> "RowTables":
        self.own, self.scale = table, scale
        return self

    def table(self) -> Tensor:
        return self.own

    def table_problem(self) -> str | None:
        return None


@pytest.fixture
def uniform_table() -> Iterator[str]:
    register_form("uniform-table")(UniformTable)
    yield "uniform-table"
    FORMS.module_dict.pop("uniform-table")


def _pair(seed: int, bits: int, rows: int = 6, columns: int = 40):
    """A weight, its symmetric uniform quantizer and the table that should be the same."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    pair = []
    for form in (UniformQuantizer, UniformTable):
        quantizer = form(TensorSpec(bits, "channel", symmetric=True), "w", axis=0)
        quantizer.set_range(weight.amin(1), weight.amax(1))
        pair.append(quantizer)
    return weight, *pair


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    rows=st.integers(1, 5),
    axis=st.integers(0, 2),
)
def test_the_place_is_that_of_the_nearest_of_all_levels(seed, bits, rows, axis):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 2**bits, generator=generator).sort(dim=1).values
    scale = torch.rand(rows, generator=generator) + 0.1
    shape = [3, 4, 5]
    shape[axis] = rows
    x = torch.randn(*shape, generator=generator) * 2
    quantizer = RowTables(TensorSpec(bits, "channel"), "x", axis=axis).give(table, scale)
    moved = x.movedim(axis, 0).double().reshape(rows, -1)
    values = (table * scale[:, None]).double()
    distances = (moved[:, :, None] - values[:, None]).abs()
    found = quantizer.fake_quantize(x).movedim(axis, 0).reshape(rows, -1)
    excess = (found.double() - moved).abs() - distances.amin(dim=2)
    assert float(excess.abs().max()) < 1e-6
    codes = quantizer.quantize(x)
    assert codes.shape == x.shape and codes.dtype == torch.int32
    chosen = distances.gather(2, codes.movedim(axis, 0).reshape(rows, -1, 1).long())[:, :, 0]
    assert float((chosen - distances.amin(dim=2)).abs().max()) < 1e-6
    assert torch.allclose(quantizer.dequantize(codes), quantizer.fake_quantize(x))
    grid = grid_of(quantizer, moved) if axis == 0 else LevelGrid.of(quantizer, moved)
    places = grid.codes(moved)
    exact = distances.gather(2, places[..., None].long())[:, :, 0]
    assert float((exact - distances.amin(dim=2)).abs().max()) < 1e-12
    assert torch.equal(grid.values(places).float(), values.gather(1, places.long()).float())
    for place in (0, moved.shape[1] - 1):
        code, value = grid.nearest(moved[:, place], place)
        assert torch.equal(code, places[:, place].long())
        assert torch.equal(value, grid.values(places)[:, place])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
def test_a_uniform_table_quantizes_as_the_uniform_form_to_the_bit(seed, bits):
    weight, plain, table = _pair(seed, bits)
    # Ties and values beyond the range too.
    weight = torch.cat([weight, 3 * weight, plain.scale[:, None] * (torch.arange(-9, 9) + 0.5)], 1)
    low = plain.code_range[0]
    assert torch.equal(table.fake_quantize(weight), plain.fake_quantize(weight))
    assert torch.equal(table.quantize(weight) + low, plain.quantize(weight))
    assert torch.equal(
        table.dequantize(table.quantize(weight)), plain.dequantize(plain.quantize(weight))
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 6), ordered=st.booleans())
def test_columns_round_on_a_uniform_table_as_on_the_uniform_grid(seed, bits, ordered):
    weight, plain, table = _pair(seed, bits)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    grids = [grid_of(quantizer, weight) for quantizer in (plain, table)]
    assert [type(grid) for grid in grids] == [RowGrid, LevelGrid]
    codes = [compensated_codes(weight, grid, second_moment(x), 0.01, ordered) for grid in grids]
    assert torch.equal(codes[0], codes[1] + plain.code_range[0])


def test_a_diagonal_second_moment_on_any_table_is_plain_rounding():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 30, generator=generator)
    table = torch.randn(3, 16, generator=generator).sort(dim=1).values
    quantizer = RowTables(TensorSpec(4, "projection"), "w", axis=0).give(table, torch.ones(3))
    diagonal = torch.rand(30, generator=generator).double() + 0.1
    codes = compensated_codes(weight, grid_of(quantizer, weight), diagonal.diag(), 0.01, True)
    assert torch.equal(codes, quantizer.quantize(weight))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_adaround_between_levels_is_adaround_on_a_uniform_table(bits):
    weight, plain, table = _pair(0, bits)
    pair = TrainableRounding(plain, weight), TrainableLevelRounding(table, weight)
    target = torch.randn_like(weight)
    for step in range(5):
        gradients = []
        for trainable in pair:
            trainable.alpha.grad = None
            (trainable(weight) - target).square().sum().backward()
            gradients.append(trainable.alpha.grad)
        assert torch.equal(pair[0](weight), pair[1](weight))
        assert torch.equal(*gradients), step
        for trainable, gradient in zip(pair, gradients, strict=True):
            trainable.alpha.data -= 3 * gradient
        for trainable in pair:
            trainable.settled = True
        assert torch.equal(pair[0](weight), pair[1](weight))
        for trainable in pair:
            trainable.settled = False
    codes = pair[1].codes(weight)
    assert torch.equal(pair[0].codes(weight), codes + plain.code_range[0])
    assert not torch.equal(codes, table.quantize(weight))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_weight_trained_through_the_levels_is_that_of_a_uniform_table(bits):
    weight, plain, table = _pair(3, bits)
    ends = [end * plain.scale[:, None] for end in plain.code_range]
    weight = 0.97 * weight  # whose largest entry is half-way between two codes
    pair = TrainableOffset(plain, weight), TrainableLevelOffset(table, weight)
    target = torch.randn_like(weight)
    for step in range(5):
        for trainable in pair:
            trainable.trained.grad = None
            (trainable(weight) - target).square().sum().backward()
        torch.testing.assert_close(pair[0](weight), pair[1](weight), rtol=0, atol=1e-6)
        gradients = [trainable.trained.grad for trainable in pair]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5, msg=str(step))
        for trainable in pair:
            trainable.trained.data -= 0.01 * gradients[0]
            trainable.trained.data.clamp_(*ends)
    codes = pair[1].codes(weight)
    assert torch.equal(pair[0].codes(weight), codes + plain.code_range[0])
    assert not torch.equal(codes, table.quantize(weight))


def test_adaround_starts_at_the_weight_and_ends_on_a_neighbour_on_any_table():
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(5, 8, generator=generator).sort(dim=1).values
    weight = torch.randn(5, 50, generator=generator) * 2
    quantizer = RowTables(TensorSpec(3, "channel"), "w", axis=0).give(table, torch.ones(5))
    trainable = TrainableLevelRounding(quantizer, weight)
    clipped = torch.minimum(torch.maximum(weight, table[:, :1]), table[:, -1:])
    torch.testing.assert_close(trainable(weight), clipped, rtol=0, atol=1e-5)
    for direction in (torch.full_like(weight, -5.0), torch.full_like(weight, 5.0)):
        trainable.alpha.data = direction
        values = quantizer.dequantize(trainable.codes(weight))
        torch.testing.assert_close(trainable(weight), values, rtol=0, atol=1e-5)
        side = values - clipped
        assert (
            bool((side * direction >= 0).all())
            and float(trainable.regulariser(2.0).detach()) < 1e-3
        )
        between = (table[:, None] > torch.minimum(values, clipped)[..., None]) & (
            table[:, None] < torch.maximum(values, clipped)[..., None]
        )
        assert not bool(between.any())  # no level lies between weight and value


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("minmax", {}),
        ("gptq", {}),
        ("gptaq", {}),
        ("brecq", {"learn": "rounding", "iterations": 5, "weight_rate": 0.05}),
    ],
)
@torch.no_grad()
def test_a_method_does_on_a_uniform_table_what_it_does_on_the_uniform_form(
    name, quick, uniform_table, vit, images, calibration, tmp_path
):
    method = METHODS.get(name).create(quick)
    symmetric = method.bit_table(BitWidth(4, 8)).change(WEIGHT_SITES, symmetric=True)
    plain = method.quantize(vit, symmetric, calibration)
    table = symmetric.change(WEIGHT_SITES, scheme=uniform_table)
    other = method.quantize(vit, table, calibration)
    assert torch.equal(other(images), plain(images))
    sizes = []
    for model, file in ((plain, "plain"), (other, "table")):
        sizes.append(save_quantized(model, tmp_path / file, {}))
        assert torch.equal(load_quantized(tmp_path / file, vit)(images), plain(images))
    extra = 14 * 64 + 200 * 14  # levels and their entry in the header, more or less
    assert sizes[1] < sizes[0] + extra


def test_what_cannot_be_a_table_is_told(vit, calibration):
    with pytest.raises(MethodError, match="no dynamic range"):
        UniformTable(TensorSpec(4, "token", dynamic=True), "w")
    with pytest.raises(MethodError, match="no codes to round to"):
        grid_of(TangentQuantizer(TensorSpec(4, scheme="tangent"), "w"), torch.ones(2, 2))
    _, _, table = _pair(0, 3)
    assert table.problem() is None
    good = table.levels
    for levels, words in (
        (good[:-1], "levels"),
        (good.double(), "levels"),
        (good.flip(0), "ascend"),
        (good + 0.5, "does not have"),
    ):
        table.levels = levels
        assert words in table.problem()
    table.levels, table.scale = good, table.scale * 0 + 3e38
    assert "finite" in table.problem()
    table.scale = torch.ones(2, 2)
    assert "one per group" in table.problem()


def test_weights_are_trained_through_a_table_and_end_on_it(uniform_table, vit, calibration):
    method = METHODS.get("qdrop").create({"learn": "weights", "iterations": 2, "weight_rate": 0.01})
    table = equal_table(BitWidth(4, 8)).change(WEIGHT_SITES, scheme=uniform_table, symmetric=True)
    model = method.quantize(vit, table, calibration)
    for layer in model.weighted_operations():
        values = layer.weight_quantizer.dequantize(layer.codes)
        torch.testing.assert_close(values, layer.weight)


def test_a_method_that_trains_scales_says_that_it_needs_a_uniform_grid(
    uniform_table, vit, calibration
):
    method = METHODS.get("adaquant").create({"iterations": 1})
    table = equal_table(BitWidth(4, 8)).change(WEIGHT_SITES, scheme=uniform_table, symmetric=True)
    with pytest.raises(MethodError, match="only scales of uniform weight quantizers"):
        method.quantize(vit, table, calibration)
