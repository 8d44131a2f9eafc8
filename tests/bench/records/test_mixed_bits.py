"""Records whose bits differ from operation to operation: what they keep, and which tables they stand in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.records.record import DamagedRecord, Record
from vit_ptq_bench.bench.report.footnotes import convention
from vit_ptq_bench.bench.report.markdown import render
from vit_ptq_bench.bench.report.tables import Evidence, tables

FOUND = {"qkv.weight@blocks.0.attn.qkv": 8, "attention@blocks.0.attn.context": 3}


def chosen(weight: float, activation: float, **more: object) -> Record:
    record = make_record(**more)
    stored = {"weight": weight, "activation": activation}
    return replace(record, found_bits=FOUND, stored_bits=stored)


def test_what_was_chosen_survives_the_file() -> None:
    record = chosen(4.0, 3.97, bits="W4A4:mixed")
    data = json.loads(json.dumps(record.to_dict()))
    again = Record.from_dict(data)
    assert again == record and again.own_bits == FOUND
    assert (again.stored_bits, again.spec.bits) == (
        {"weight": 4.0, "activation": 3.97},
        "W4A4:mixed",
    )


@pytest.mark.parametrize(
    "key, value", [("found_bits", {"a": "8"}), ("found_bits", 4), ("stored_bits", {"weight": "4"})]
)
def test_what_is_no_bits_is_refused(key: str, value: object) -> None:
    data = chosen(4.0, 4.0).to_dict() | {key: value}
    with pytest.raises(DamagedRecord, match=key):
        Record.from_dict(data)


def test_a_search_of_another_version_is_another_run() -> None:
    spec = make_record(bits="W4A4:mixed").spec
    newer = [replace(spec, allocation=version).run_id for version in (None, 1, 2)]
    assert len(set(newer)) == 3
    data = replace(spec, allocation=2).to_dict()
    assert type(spec).from_dict(data).allocation == 2
    with pytest.raises(Exception, match="allocation must be a whole number"):
        type(spec).from_dict(data | {"allocation": "2"})


@pytest.mark.parametrize(
    "record, bits",
    [
        (make_record(), "W4A4"),
        (make_record(bits="W4A4:mixed"), "W4A4:mixed"),
        (chosen(4.0, 4.0, bits="W4A4:mixed"), "W4A4:mixed"),
        (chosen(3.2, 4.004), "W4A4:mixed"),
        (chosen(4.0, 4.3), "W4A4:more"),
        (chosen(4.1, 4.0, bits="W4A4:mixed"), "W4A4:more"),
        (replace(chosen(5.0, 4.0), found_bits=None), "W4A4:more"),  # by its table or its form
        (replace(chosen(3.5, 4.0), found_bits=None), "W4A4"),
        (chosen(4.0, 4.0, bits="of another program"), "of another program"),
        (replace(make_record(), found_bits={}), "W4A4"),
    ],
)
def test_it_stands_with_its_like(record: Record, bits: str) -> None:
    assert record.standing_bits == bits


def test_an_entry_of_the_given_table_counts_too() -> None:
    entry = {**TABLE["attention"], "bits": 8}
    own = TABLE | {"attention@blocks.0.attn.context": entry}
    assert make_record(table=own).standing_bits == "W4A4:mixed"


def test_no_mixed_row_is_ranked_among_uniform_ones() -> None:
    rows = [
        make_record(method="plain", value=70.0),
        make_record(method="other", value=60.0),
        chosen(4.0, 4.0, method="plain", value=80.0, bits="W4A4:mixed"),
        chosen(4.0, 4.4, method="spiky", value=90.0),
    ]
    found = {table.place.bits: table for table in tables(rows, lambda record: Evidence())}
    labels = {bits: [row.label for row in table.rows] for bits, table in found.items()}
    assert labels == {
        "W4A4": ["plain", "other"],
        "W4A4:mixed": ["plain"],
        "W4A4:more": ["spiky"],
    }
    assert {bits: table.missing for bits, table in found.items()} == dict.fromkeys(labels, ())
    assert found["W4A4:more"].rows[0].stored == "4.00/4.40"


def test_all_draws_of_a_method_stand_in_one_table() -> None:
    even = replace(make_record(method="q-limit", seed=1, value=31.0), found_bits={})
    draws = [even, chosen(4.0, 4.0, method="q-limit", seed=0, value=24.0)]
    others = [make_record(method="plain", seed=seed) for seed in (0, 1)]
    (mixed, plain) = sorted(
        tables([*draws, *others], lambda record: Evidence()),
        key=lambda one: len(one.place.bits),
        reverse=True,
    )
    assert (mixed.place.bits, plain.place.bits) == ("W4A4:mixed", "W4A4")
    (row,) = mixed.rows
    assert row.label == "q-limit" and row.value == 27.5
    assert [row.label for row in plain.rows] == ["plain"]
    # Without a draw that differs it is a row like any other.
    (alone,) = tables([even], lambda record: Evidence())
    assert alone.place.bits == "W4A4"
    # A uniform run of a method is no draw of the one that was asked for with mixed bits.
    asked = chosen(4.0, 4.0, method="plain", bits="W4A4:mixed")
    found = tables([asked, *others], lambda record: Evidence())
    assert {table.place.bits: len(table.rows) for table in found} == {"W4A4": 1, "W4A4:mixed": 1}


def test_the_page_tells_what_is_stored() -> None:
    mixed = chosen(4.0, 3.97, value=80.0, bits="W4A4:mixed")
    records = [mixed, make_record()]
    text = render(records, tables(records, lambda record: Evidence()), [])
    assert "4.00/3.97" in text
    assert (
        "bits chosen by operation: 3 bits for attention of blocks.0.attn.context, 8 bits for"
        in text
    )
    assert "8 bits for qkv.weight of blocks.0.attn.qkv" in convention(mixed)
