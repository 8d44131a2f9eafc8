"""What is in which table and row, and who is ranked."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from tests.bench.samples import make_record
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report import intervals
from vit_ptq_bench.bench.report.standings import Standing
from vit_ptq_bench.bench.report.tables import Evidence, Place, Table, tables


def nothing(record: Record) -> Evidence:
    return Evidence()


def hits(record: Record) -> Evidence:
    """A thousand images, of which a better method is right on those of a worse one and on more."""
    return Evidence(np.arange(1000) < 10 * (record.value or 0))


def one(found: list[Table], bits: str = "W4A4", protocol: str = "equal") -> Table:
    (table,) = [t for t in found if (t.place.bits, t.place.protocol) == (bits, protocol)]
    return table


RECORDS = [
    make_record(method="fp32", bits="W32A32", value=95.0, fidelity="reference"),
    make_record(method="minmax", value=60.0),
    make_record(method="repq", value=90.0),
    make_record(method="near", value=89.9),
    make_record(method="omse", status="failed"),
    make_record(method="repq", value=80.0, bits="W3A3"),
    make_record(method="minmax", value=70.0, protocol="authors"),
    *(make_record(method="seeded", value=v, seed=s) for s, v in enumerate((70.0, 74.0, 78.0))),
]


def test_rows_are_ordered_by_value_and_ranked_by_what_tests_separate() -> None:
    table = one(tables(RECORDS, hits))
    assert [row.label for row in table.rows] == ["repq", "near", "seeded", "minmax", "omse"]
    assert [row.standing and row.standing.rank for row in table.rows] == [1, 1, 3, 4, None]
    assert table.ranked == table.rows[:4]
    assert table.reference is not None and table.reference.value == 95.0
    seeded = table.rows[2]
    assert (seeded.value, seeded.deviation) == (74.0, 4.0)
    assert [run.spec.seed for run in seeded.runs] == [0, 1, 2]
    assert seeded.metric("top5") == 99.0 and seeded.seconds == 1.25
    assert table.rows[4].failures[0].status == "failed" and table.rows[4].value is None
    assert (table.metric, table.titles) == ("top1", (("top5", "top5"),))


def test_bits_and_protocols_have_tables_of_their_own() -> None:
    found = tables(RECORDS, nothing)
    assert [(t.place.protocol, t.place.bits) for t in found] == [
        ("authors", "W4A4"), ("equal", "W3A3"), ("equal", "W4A4"),
    ]  # fmt: skip
    assert one(found, "W3A3").missing == ("minmax", "near", "omse", "seeded")
    assert one(found, protocol="authors").missing == ()
    assert found[0].place == Place(
        "fashion", 1, "sha256:1", None, "authors", "", "vit_mini", "sha256:0", "W4A4"
    )


def test_without_outcomes_intervals_are_held_against_each_other() -> None:
    ranked = one(tables(RECORDS, nothing)).ranked
    assert [row.standing for row in ranked] == [
        Standing(1, 2, "intervals", True), Standing(1, 2, "intervals", True),
        Standing(3, 1, "intervals"), Standing(4, 0, "intervals"),
    ]  # fmt: skip
    bare = [replace(record, intervals={}, standard_errors={}) for record in RECORDS]
    unknown = [row.standing for row in one(tables(bare, nothing)).ranked]
    assert {(found.rank, found.basis) for found in unknown if found} == {(None, "nothing")}


def test_the_interval_of_several_seeds_has_images_and_seeds() -> None:
    """It was none, and on the page that of the seeds alone."""
    table = one(tables(RECORDS, hits))
    by_label = {row.label: row for row in table.rows}
    assert by_label["repq"].interval == (89.0, 91.0)  # one run: as its record has it
    seeded = by_label["seeded"]
    assert seeded.interval == intervals.of_outcomes([np.arange(1000) < v for v in (700, 740, 780)])
    assert table.reference is not None and table.reference.interval == (94.0, 96.0)
    assert by_label["omse"].interval is None
    by_errors = one(tables(RECORDS, nothing)).rows[2]
    assert by_errors.interval == intervals.of_errors((70.0, 74.0, 78.0), (0.5, 0.5, 0.5))


def test_other_images_are_another_table_with_a_reference_of_their_own() -> None:
    found = tables([*RECORDS, make_record(method="repq", limit=10)], nothing)
    (few,) = [table for table in found if table.place.limit == 10]
    assert few.reference is None and [row.label for row in few.rows] == ["repq"]


def test_a_metric_that_is_no_share_is_judged_by_its_replicates() -> None:
    def boxes(method: str, value: float) -> Record:
        record = make_record(method=method, value=value)
        metrics = {"box_ap": value}
        return replace(record, primary_metric="box_ap", outcomes_metric=None, metrics=metrics)

    sets = np.random.default_rng(0).normal(0, 1, 100)

    def drawn(record: Record) -> Evidence:
        own = np.random.default_rng(ord(record.spec.method.name)).normal(0, 0.1, 100)
        return Evidence(np.ones(4, dtype=bool), (record.value or 0) + sets + own)

    table = one(tables([boxes("a", 40.0), boxes("b", 40.05), boxes("c", 42.0)], drawn))
    assert [(row.label, row.standing and row.standing.rank) for row in table.rows] == [
        ("c", 1), ("b", 2), ("a", 2),
    ]  # fmt: skip


def test_the_order_of_the_records_does_not_matter() -> None:
    expected = tables(RECORDS, hits)
    for seed in range(5):
        shuffled = RECORDS.copy()
        random.Random(seed).shuffle(shuffled)
        assert tables(shuffled, hits) == expected
    assert tables([], hits) == []


def test_a_folder_of_failures_or_of_the_reference_alone_has_no_ranks() -> None:
    (table,) = tables([make_record(status="failed")], nothing)
    assert table.ranked == () and table.metric == "" and table.titles == ()
    assert tables(RECORDS[:1], nothing) == []
