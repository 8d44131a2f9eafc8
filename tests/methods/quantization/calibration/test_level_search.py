"""The search of levels against all subsets, one by one, and what refitting and rows promise."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.calibration.codebook_search import WeightedEntries
from vit_ptq_bench.methods.quantization.calibration.level_search import (
    FACTORS,
    Histogram,
    SortedRows,
    cheapest_levels,
    search_levels,
)
from vit_ptq_bench.methods.quantization.quantizers.power_sums import (
    SignedPowersQuantizer,
    SubsetQuantizer,
)


def _weight(seed, rows=6, columns=30):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, 1, generator=generator) + 0.2
    return torch.randn(rows, columns, generator=generator) * sizes


def _errors(weight, levels):
    """Squared error of each row of a weight [R, K] on the nearest of its levels [..., R, n]."""
    distances = np.abs(weight[:, :, None] - levels[..., :, None, :])
    return np.square(distances.min(axis=-1)).sum(axis=-1)


def test_the_universal_set_has_15_magnitudes_of_two_powers():
    found = SubsetQuantizer.candidates(4)
    wanted = sorted({(u + v) / 2 for u in (1, 1 / 2, 1 / 8, 0) for v in (1, 1 / 4, 1 / 16, 0)})
    assert found.tolist() == wanted and len(wanted) == 15


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_signed_powers_have_at_most_two_digits(bits):
    """The non-adjacent form of a whole number has the fewest signed digits."""

    def digits(number):
        count = 0
        while number:
            if number % 2:
                count += 1
                number -= 2 - number % 4
            number //= 2
        return count

    places = min(2 * bits, 13) - 1
    found = (SignedPowersQuantizer.candidates(bits).double() * 2**places).tolist()
    assert all(number == int(number) for number in found)
    most = 3 * 2 ** (places - 1)
    wanted = [n for n in range(-most, most + 1) if digits(abs(n)) <= 2]
    # 2^0 is the highest place: 1 - 2^-i is among the numbers, 2 - 2^-i is not.
    assert set(found) <= set(map(float, wanted)) and len(found) >= 2**bits
    inside = [n for n in wanted if abs(n) <= 2**places]
    assert set(map(float, inside)) <= set(found)


@pytest.mark.parametrize(("bits", "seed"), [(2, 0), (2, 1), (3, 2), (3, 3), (4, 4)])
def test_the_cheapest_levels_are_the_best_of_all_subsets(bits, seed):
    weight, count = _weight(seed), 2 ** (bits - 1)
    scale, factor = weight.abs().amax(1).double(), 0.8
    candidates = SubsetQuantizer.candidates(bits).double()
    every = np.array(list(combinations(candidates.tolist(), count)))
    levels = every[:, None] * factor * scale.numpy()[:, None]
    wanted = _errors(weight.abs().double().numpy(), levels).sum(axis=1)
    histogram = Histogram.of(weight.abs(), scale)
    chosen, errors = cheapest_levels(histogram, candidates, torch.tensor([factor]).double(), count)
    place = int((every == candidates[chosen[0]].numpy()).all(axis=1).argmax())
    assert every[place].tolist() == candidates[chosen[0]].tolist()
    # An entry is counted at the centre of its bin, and bins lie on one side of a midpoint.
    assert float(errors[0]) == pytest.approx(wanted.min(), rel=5e-3)
    assert wanted[place] <= 1.005 * wanted.min()
    assert len(every) == {2: 105, 3: 1365, 4: 6435}[bits]


def test_each_scale_is_a_problem_of_its_own():
    rows = _weight(7)
    scale = rows.abs().amax(1).double()
    histogram = Histogram.of(rows, scale)
    candidates, factors = (
        SignedPowersQuantizer.candidates(3).double(),
        torch.tensor(FACTORS).double(),
    )
    together = cheapest_levels(histogram, candidates, factors, 8)
    for index in range(len(FACTORS)):
        one = cheapest_levels(histogram, candidates, factors[index : index + 1], 8)
        assert torch.equal(one[0][0], together[0][index])
        assert torch.equal(one[1][0], together[1][index])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9))
def test_running_sums_give_errors_and_scales_of_rows(seed, count):
    weight = _weight(seed)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(count, generator=generator).double().sort().values
    scale = torch.rand(6, generator=generator).double() + 0.1
    ordered = SortedRows.of(weight)
    table = scale[:, None] * levels
    exact = weight.double().numpy()
    np.testing.assert_allclose(ordered.errors(table), _errors(exact, table.numpy()), atol=1e-9)
    refitted = ordered.refitted(levels, scale)
    nearest = np.abs(exact[..., None] - table.numpy()[:, None]).argmin(axis=-1)
    for row in range(6):
        q = levels.numpy()[nearest[row]]
        fit = np.linalg.lstsq(q[:, None], exact[row], rcond=None)[0][0]
        wanted = fit if fit > 0 else float(scale[row])
        assert float(refitted[row]) == pytest.approx(wanted, rel=1e-6)
    after = ordered.errors(refitted[:, None] * levels)
    assert bool((after <= ordered.errors(table) + 1e-9).all())


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_search_is_as_good_as_every_subset_fitted_one_by_one(seed):
    """Three bits: each of the 1365 subsets, its scales refitted thirty times from each row's extreme."""
    weight = _weight(seed, 5, 60)
    magnitudes, bits = weight.abs().double().numpy(), 3
    found = np.inf
    for levels in combinations(SubsetQuantizer.candidates(bits).tolist(), 4):
        levels = np.array(levels)
        scale = magnitudes.max(axis=1) / levels.max()
        for _ in range(30):
            q = levels[np.abs(magnitudes[..., None] / scale[:, None, None] - levels).argmin(-1)]
            scale = (q * magnitudes).sum(1) / (q * q).sum(1).clip(1e-12)
        found = min(found, _errors(magnitudes, scale[:, None] * levels).sum())
    quantizer = SubsetQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
    search_levels(quantizer, weight)
    assert quantizer.problem() is None
    error = float((quantizer.fake_quantize(weight) - weight).square().sum())
    assert error <= 1.08 * found  # the first choice is made with one factor for all rows


@pytest.mark.parametrize("form", [SubsetQuantizer, SignedPowersQuantizer])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "projection"])
def test_levels_are_searched_for_any_weight(form, bits, granularity):
    weight = _weight(bits, 6, 40).reshape(6, 4, 10)
    weight[2] = 0  # a dead row
    axis = None if granularity == "tensor" else 0
    quantizer = form(TensorSpec(bits, granularity), "w", axis=axis)
    search_levels(quantizer, weight)
    assert quantizer.problem() is None
    assert quantizer.groups == {"tensor": 1, "channel": 6, "projection": 3}[granularity]
    searched = (quantizer.fake_quantize(weight) - weight).square().sum()
    plain = form(TensorSpec(bits, granularity), "w", axis=axis)
    ends = weight.reshape(quantizer.groups, -1)
    plain.set_range(ends.amin(1), ends.amax(1))
    assert plain.problem() is None
    assert float(searched) < float((plain.fake_quantize(weight) - weight).square().sum())
    assert float(quantizer.fake_quantize(weight)[2].abs().max()) < 1e-6 or granularity != "channel"


def test_levels_that_a_file_cannot_have_are_told():
    quantizer = SubsetQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    search_levels(quantizer, _weight(0))
    good = quantizer.levels.clone()
    quantizer.levels = good * 0.99
    assert "does not have" in quantizer.problem()
    quantizer.levels = good - 0.03125
    assert "negatives" in quantizer.problem()
    with pytest.raises(MethodError, match="no dynamic range"):
        SubsetQuantizer(TensorSpec(3, "token", dynamic=True), "w")


def test_all_candidates_are_chosen_where_as_many_are_asked_for():
    """Errors against distances to the nearest of all; one fewer is never better."""
    entries = torch.randn(500, generator=torch.Generator().manual_seed(4)).sort().values.double()
    weights = torch.rand(500, generator=torch.Generator().manual_seed(5)).double() + 0.1
    known = WeightedEntries.of(entries, weights)
    candidates, scales = torch.arange(-6.0, 7.0).double(), torch.tensor([0.3, 1.1]).double()
    chosen, errors = cheapest_levels(known, candidates, scales, 13)
    assert torch.equal(chosen, torch.arange(13).expand(2, 13))
    distances = (entries[:, None, None] - scales[:, None] * candidates).abs().amin(dim=2)
    assert torch.allclose(errors, (weights[:, None] * distances.square()).sum(dim=0))
    assert bool((cheapest_levels(known, candidates, scales, 12)[1] >= errors).all())
