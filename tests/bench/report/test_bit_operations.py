"""Bit operations that another record of the same model and bit table tells, as the stored records do."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store, folders_of_records
from vit_ptq_bench.bench.report.bit_operations import BitOperations, structure
from vit_ptq_bench.bench.report.recommendation import recommend

RESULTS = Path(__file__).parents[3] / "results"
OTHER = {**TABLE, "fc1.input": {**next(iter(TABLE.values())), "bits": 3}}


def counted(operations: int, **how: object) -> Record:
    """A record that counted so many bit operations, in two roles."""
    costs = {"qkv": {"bit_operations": operations - 1}, "fc1": {"bit_operations": 1}}
    return replace(make_record(**how), costs=costs)  # type: ignore[arg-type]


def test_the_stored_records_of_one_structure_have_the_same_costs() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    records: dict[str, int] = defaultdict(int)
    for folder in folders_of_records(RESULTS):
        for record in Store(folder).records():
            if record.ok and record.costs:
                found[structure(record)].add(str(sorted(record.costs.items())))
                records[structure(record)] += 1
    assert sum(number > 1 for number in records.values()) >= 100
    assert [key for key, costs in found.items() if len(costs) > 1] == []


def test_a_run_that_counted_none_has_those_of_its_structure() -> None:
    donor, plain = counted(900), make_record(method="other", seed=3)
    tells = BitOperations([donor, plain])
    assert plain.bit_operations is None and tells.of(plain) == 900
    assert tells.of(counted(7)) == 7  # its own go first
    for other in (
        make_record(model="deit_mini"),
        make_record(task="imagenet"),
        make_record(table=OTHER),
        replace(plain, found_bits={"fc1.input": 3}),
        replace(plain, spec=replace(plain.spec, scope="backbone")),
        replace(plain, spec=replace(plain.spec, model=replace(plain.spec.model, weights="other"))),
    ):
        assert tells.of(other) is None


def test_records_that_disagree_or_failed_tell_nothing() -> None:
    plain = make_record(method="other")
    assert BitOperations([counted(900), counted(901, seed=1)]).of(plain) is None
    assert BitOperations([replace(counted(900), status="failed")]).of(plain) is None
    assert BitOperations().of(plain) is None


def test_of_a_detector_the_images_are_part_of_it() -> None:
    def detector(record: Record) -> Record:
        return replace(record, spec=replace(record.spec, scope="backbone"))

    tells = BitOperations([detector(counted(900))])
    assert tells.of(detector(make_record(method="other"))) == 900
    assert tells.of(detector(make_record(method="other", seed=1))) is None


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Full precision, a row that counted its bit operations, one that did not, and one of another table."""
    right = np.arange(1000) < 900
    for record in (
        make_record(method="fp32", bits="W32A32", fidelity="reference", value=90.0, n=1000),
        counted(5 * 10**9, method="new", value=90.0, n=1000),
        make_record(method="old", value=90.0, n=1000),
        make_record(method="alone", table=OTHER, value=90.0, n=1000),
    ):
        Store(tmp_path).write(record, right)
    return tmp_path


def test_recommend_takes_them_and_says_so(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = recommend(results, "vit_mini", 1.0, by="bit-operations")
    assert {one.label: (one.cost("bit-operations"), one.looked_up) for one in found.found} == {
        "new": (5.0, False),
        "old": (5.0, True),
    }
    assert found.left_out == ("1 row without a record of the bit operations of an image",)
    data = {one["label"]: one for one in (found.to_dict()["chosen"], *found.to_dict()["others"])}
    assert data["old"]["bit_operations"] == 5e9 and data["old"]["bit_operations_looked_up"] is True
    assert data["new"]["bit_operations_looked_up"] is False
    words = ["recommend", "--model", "vit_mini", "--results", str(results)]
    assert main([*words, "--by", "bit-operations"]) == 0
    out = capsys.readouterr().out
    assert "5.00* " in out and "5.00 " in out and "*: the run did not count them" in out
    assert main(words) == 0
    assert "*: " not in capsys.readouterr().out


def test_most_stored_rows_can_be_asked_for_their_bit_operations() -> None:
    found = recommend(
        RESULTS / "imagenet-sample", "vit_tiny_patch16_224", 100.0, by="bit-operations"
    )
    assert sum(one.looked_up for one in found.found) > len(found.found) / 4
    assert found.considered > 0.6 * len(
        recommend(RESULTS / "imagenet-sample", "vit_tiny_patch16_224", 100.0).found
    )
