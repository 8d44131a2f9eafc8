"""Recommendations and places over models and bit widths."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from tests.bench.report.test_tables import hits, nothing
from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.summary import averaged, choices, overall
from vit_ptq_bench.bench.report.tables import tables


def timed(method: str, value: float, seconds: float) -> Record:
    return replace(make_record(method=method, value=value), seconds={"calibrate": seconds})


def test_the_cheapest_is_one_of_those_that_no_test_separates_from_the_best() -> None:
    records = [
        timed("slow", 90.0, 100.0), timed("near", 89.9, 10.0), timed("quick", 70.0, 1.0),
        make_record(method="broken", status="failed"),
    ]  # fmt: skip
    (choice,) = choices(tables(records, hits))
    assert (choice.best.label, choice.cheapest.label) == ("slow", "near")
    assert [row.label for row in choice.equal] == ["near"]


def test_of_equal_figures_the_one_that_takes_less_time_is_the_best() -> None:
    records = [timed("a", 90.0, 100.0), timed("b", 90.0, 10.0), timed("c", 70.0, 1.0)]
    (choice,) = choices(tables(records, hits))
    assert (choice.best.label, choice.cheapest.label) == ("b", "b")


def test_a_time_that_is_not_known_is_not_the_cheapest() -> None:
    records = [
        replace(timed("a", 90.0, 1.0), seconds={}),
        timed("b", 90.0, 9.0),
        timed("c", 70.0, 1.0),
    ]
    (choice,) = choices(tables(records, hits))
    assert choice.cheapest.label == "b" and choice.tested


THREE = [timed("a", 90.0, 9.0), timed("b", 89.9, 1.0), timed("c", 70.0, 0.1)]


def test_what_could_not_be_tested_is_held_against_the_best_by_intervals_or_not_at_all() -> None:
    (choice,) = choices(tables(THREE, nothing))
    assert (choice.best.label, [row.label for row in choice.equal]) == ("a", ["b"])
    assert choice.cheapest is not None and choice.cheapest.label == "b"
    assert choice.basis == "intervals" and not choice.tested
    bare = [replace(record, intervals={}) for record in THREE]
    (unknown,) = choices(tables(bare, nothing))
    assert (unknown.best.label, unknown.equal, unknown.cheapest) == ("a", (), None)
    assert unknown.basis == "nothing"


def test_fewer_than_three_methods_or_a_useless_best_are_no_answer() -> None:
    assert choices(tables(THREE[:2], hits)) == []
    full = make_record(method="fp32", bits="W32A32", value=95.0, fidelity="reference")
    low = [make_record(method=name, value=v) for name, v in (("a", 23.0), ("b", 2.0), ("c", 1.0))]
    assert choices(tables([full, *low], hits)) == []
    assert len(choices(tables([full, *low, make_record(method="d", value=24.0)], hits))) == 1
    assert (
        len(choices(tables(low, hits))) == 1
    )  # without full precision nothing is known to be useless


def test_bits_that_are_shared_out_come_last() -> None:
    bits = ("W3A3:mixed", "W4A4")
    records = [make_record(method=m, bits=b, value=60.0) for m, b in product("abc", bits)]
    assert [choice.table.place.bits for choice in choices(tables(records, hits))] == [*bits[::-1]]


def test_what_does_not_compare_is_never_the_answer_but_is_told() -> None:
    moving = {**TABLE, "attention": {**TABLE["attention"], "dynamic": True}}
    records = [
        *THREE,
        make_record(method="far", value=95.0, table=moving),
        make_record(method="near", value=89.8, table=moving),
        make_record(method="low", value=50.0, table=moving),
    ]
    (choice,) = choices(tables(records, hits))
    assert choice.best.label == "a" and [row.label for row in choice.equal] == ["b"]
    assert [row.name for row in choice.besides] == ["far †", "near †"]
    assert [row.classes for row in choice.besides] == [("dynamic",)] * 2
    assert (
        choice.cheapest is not None and choice.cheapest.label == "b"
    )  # and not `near`, which takes less
    named = {one.label: one.name for one in overall(tables([*records, *_again(records)], hits))}
    assert (named["far"], named["a"]) == ("far †", "a")


def _again(records: list[Record]) -> list[Record]:
    """The same on another model."""
    return [
        replace(r, spec=replace(r.spec, model=replace(r.spec.model, name="other"))) for r in records
    ]


def test_tables_without_a_result_have_no_choice() -> None:
    assert choices(tables([make_record(status="failed")], nothing)) == []
    assert choices([]) == [] and overall([]) == []


def test_a_method_is_placed_by_its_ranks_and_not_by_the_hardest_cell() -> None:
    figures = {  # of three models: `even` is second everywhere, `odd` has the highest mean
        "even": (90.0, 80.0, 30.0),
        "odd": (80.0, 70.0, 60.0),
        "first": (91.0, 81.0, 20.0),
    }
    records = [
        make_record(method=method, model=f"m{index}", value=value)
        for method, values in figures.items()
        for index, value in enumerate(values)
    ]
    found = overall(tables(records, hits))
    assert [(one.label, round(one.rank.value, 2)) for one in found] == [
        ("first", 1.67), ("even", 2.0), ("odd", 2.33),
    ]  # fmt: skip
    assert all(one.cells == 3 for one in found)
    assert found[2].wins.value == pytest.approx(100 / 3)  # both others, in one of three cells
    assert found[2].rank.low is None  # of three cells


def test_a_method_that_lacks_cells_comes_behind_those_that_have_all() -> None:
    records = [make_record(method=m, model=v, value=50.0) for m, v in product("ab", "xy")]
    records.append(make_record(method="c", model="x", value=99.0))
    found = overall(tables(records, hits))
    assert [(one.label, one.cells) for one in found] == [("a", 2), ("b", 2), ("c", 1)]
    assert found[0].rank.value == pytest.approx((2.5 + 1.5) / 2)
    assert found[0].rank.low is None


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(10, 2, 200).tolist()
    found = averaged(values)
    half = norm.ppf(0.975) * np.std(values) / np.sqrt(200)
    assert found.low == pytest.approx(found.value - half, abs=0.05)
    assert found.high == pytest.approx(found.value + half, abs=0.05)
    assert averaged(values) == found


def test_fewer_than_five_cells_have_no_interval() -> None:
    """Drawn from three the same cell thrice is no rarity: [1.0, 1.0] looked like certainty."""
    assert averaged([1.0] * 4).low is None and averaged([1.0] * 5).low == 1.0
