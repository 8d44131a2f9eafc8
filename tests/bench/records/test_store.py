"""Records survive crashes, never change silently, and damaged ones are reported."""

import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.outcomes import (
    DamagedOutcomes,
    pack,
    unpack,
    unpack_replicates,
)
from vit_ptq_bench.bench.records.record import DamagedRecord, Record, checksum
from vit_ptq_bench.bench.records.spec import canonical_json, table_to_dict
from vit_ptq_bench.bench.records.store import Store, load_record


def test_write_then_read_is_the_same_record(tmp_path):
    store, outcomes = Store(tmp_path), np.array([True, False, True])
    record = make_record(value=66.0)
    written = store.write(record, outcomes)
    assert written.path == tmp_path / "runs" / "fashion" / "vit_mini" / f"{record.run_id}.json"
    again = store.read(record)
    assert replace(again, outcomes_sha256=None) == record
    assert np.array_equal(store.outcomes(again), outcomes)
    assert store.records() == [again] and store.damaged == []


def test_records_of_older_layouts_still_load():
    record = make_record(
        task="digits",
        notes=("trains weights", "in two steps"),
        family="calibration",
        table={**TABLE, "attention": {**TABLE["attention"], "bits": 8}},
    )
    seventh = record.to_dict() | {"schema": 7}
    del seventh["costs"]
    assert Record.from_dict(seventh | {"checksum": checksum(seventh)}) == record
    fifth = seventh | {"schema": 5}
    del fifth["stored_bits"], fifth["found_bits"]
    assert Record.from_dict(fifth | {"checksum": checksum(fifth)}) == record
    assert fifth["common_differs"].keys() == {"attention"}
    fourth = fifth | {"schema": 4, "common_table": table_to_dict(record.common_table)}
    del fourth["family"], fourth["common_differs"]
    assert Record.from_dict(fourth | {"checksum": checksum(fourth)}) == record
    with pytest.raises(DamagedRecord, match="its checksum is not that of its content"):
        Record.from_dict(fourth | {"checksum": checksum(fifth)})
    fewer = {**fourth, "common_table": {}}
    with pytest.raises(DamagedRecord, match="schema is 4, but the keys are not those"):
        Record.from_dict(fewer)
    third = fourth | {"schema": 3}
    for key in ("outcomes_metric", "data_notes", "model_sha256"):
        del third[key]
    assert Record.from_dict(third) == record
    with pytest.raises(DamagedRecord, match="schema is 3, but the keys are not those"):
        Record.from_dict(third | {"data_notes": []})
    second = third | {
        "schema": 2,
        "convention": "floating point: head.input; dynamic: value; trains  weights; in two steps",
    }
    del second["notes"], second["metric_titles"]
    assert Record.from_dict(second) == record
    first = second | {"schema": 1}
    del first["variant"]
    assert Record.from_dict(first) == record
    silent = Record.from_dict(
        second | {"convention": None, "primary_metric": None, "status": "failed"}
    )
    assert (silent.notes, silent.metric_titles) == ((), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": 3}, "variant must be a text or null, not 3"),
        ({"schema": 1}, "schema is 2, but the keys are not those of that layout"),
        ({"schema": 2, "convention": 5}, "schema is 2, but the keys"),
        ({"notes": "one"}, "notes must be a list of texts, not 'one'"),
        ({"metric_titles": [["top5"]]}, "metric_titles must be a list of pairs of texts"),
        ({"common_differs": {"attention": {"bits": 99}}}, "bits must be 2 to 8"),
        ({"common_differs": {"fc9.input": {"bits": 4}}}, "the run's table has not: .'fc9.input'"),
    ],
)
def test_what_is_no_record_is_refused(change, message):
    with pytest.raises(DamagedRecord, match=message):
        Record.from_dict(make_record().to_dict() | change)


def test_the_label_is_no_part_of_the_identity(tmp_path):
    store, plain, labelled = Store(tmp_path), make_record(), make_record(variant="+x")
    assert labelled.run_id == plain.run_id
    assert (plain.title, labelled.title) == ("minmax", "minmax +x")
    store.write(plain, np.ones(4, dtype=bool))
    assert not store.write(labelled, np.ones(4, dtype=bool)).conflict
    assert store.read(plain).variant == "+x"


@settings(max_examples=30, deadline=None)
@given(bits=st.lists(st.booleans(), max_size=70))
def test_outcomes_pack_losslessly_and_deterministically(bits):
    array = np.array(bits, dtype=bool)
    assert np.array_equal(unpack(pack(array)), array)
    assert pack(array) == pack(array.copy())


@settings(max_examples=30, deadline=None)
@given(
    bits=st.lists(st.booleans(), max_size=9),
    values=st.lists(st.floats(0, 100, width=32), max_size=9),
)
def test_replicates_pack_beside_outcomes(bits, values):
    outcomes, replicates = np.array(bits, dtype=bool), np.array(values, dtype=np.float32)
    packed = pack(outcomes, replicates)
    assert np.array_equal(unpack(packed), outcomes)
    assert np.array_equal(unpack_replicates(packed), replicates)
    assert packed == pack(outcomes.copy(), replicates.astype(np.float64))
    assert unpack_replicates(pack(outcomes)) is None


@pytest.mark.parametrize(
    "wrong", [np.zeros(3), np.zeros((3, 1), "<f4"), np.array([np.nan], "<f4"), np.zeros(3, ">f4")]
)
def test_replicates_of_another_form_are_damage(wrong):
    content = io.BytesIO()
    np.savez(content, replicates=wrong)
    with pytest.raises(DamagedOutcomes, match="finite numbers of four bytes"):
        unpack_replicates(content.getvalue())
    with pytest.raises(DamagedOutcomes, match="no archive"):
        unpack_replicates(content.getvalue()[:40])


def test_a_run_again_that_brings_replicates_is_no_conflict(tmp_path):
    store, outcomes = Store(tmp_path), np.ones(4, dtype=bool)
    store.write(make_record(), outcomes)
    assert store.replicates(store.records()[0]) is None
    assert not store.write(make_record(), outcomes, np.arange(3)).conflict
    (record,) = store.records()
    assert store.replicates(record).tolist() == [0, 1, 2]
    assert store.outcomes(record).all()
    assert store.write(make_record(), ~outcomes, np.arange(3)).conflict


def test_replicates_may_also_come_where_the_older_archive_is_gone(tmp_path):
    store, outcomes = Store(tmp_path), np.ones(4, dtype=bool)
    store.write(make_record(), outcomes).path.with_suffix(".npz").unlink()
    assert not store.write(make_record(), outcomes, np.arange(3)).conflict
    assert store.replicates(store.records()[0]) is not None


def test_run_id_is_the_hash_of_the_canonical_spec():
    first, second = {"b": 1, "a": [1.5, None]}, {"a": [1.5, None], "b": 1}
    assert canonical_json(first) == canonical_json(second) == '{"a":[1.5,null],"b":1}'
    record = make_record(task="digits")  # of the first bundled task: stored ids stay
    digest = hashlib.sha256(canonical_json(record.spec.to_dict()).encode()).hexdigest()
    assert record.run_id == digest[:16] == "44849c273c5a565f"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_other_numbers_are_put_beside_and_never_over(tmp_path):
    store = Store(tmp_path)
    first, other = make_record(value=66.0), make_record(value=67.0)
    store.write(first, np.ones(4, dtype=bool))
    assert store.write(other, np.zeros(4, dtype=bool)).conflict
    assert store.read(first).value == 66.0 and store.outcomes(store.read(first)).all()
    assert [path.name for path in store.conflicts()] == [f"{first.run_id}.conflict-1.json"]
    assert len(store.records()) == 1


def test_same_numbers_and_other_times_replace(tmp_path):
    store = Store(tmp_path)
    store.write(make_record(), np.ones(4, dtype=bool))
    later = replace(make_record(), seconds={"calibrate": 9.0, "total": 9.0})
    assert not store.write(later, np.ones(4, dtype=bool)).conflict
    assert store.read(later).seconds["calibrate"] == 9.0


def test_a_failure_never_replaces_a_result_but_the_reverse_does(tmp_path):
    store = Store(tmp_path)
    failed = make_record(status="failed")
    store.write(failed)
    assert store.read(failed).status == "failed"
    store.write(make_record(), np.ones(4, dtype=bool))
    store.write(failed)
    assert store.read(failed).status == "ok" and store.conflicts() == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t[: len(t) // 2], "delimiter|Unterminated|Expecting|value"),
        (lambda t: "", "Expecting value"),
        (lambda t: t.replace('"schema": 8', '"schema": 99'), "schema is 99"),
        (lambda t: t.replace('"W4A4"', '"W3A3"'), "its spec has the id"),
        (lambda t: t.replace('"n": 4', '"n": "four"'), "n must be"),
        (lambda t: t.replace('"fidelity"', '"fidelty"'), "missing: fidelity"),
        (lambda t: "[1, 2]", "JSON object"),
    ],
)
def test_damaged_files_are_reported_and_count_as_missing(tmp_path, damage, message):
    store, record = Store(tmp_path), make_record()
    path = store.write(record, np.ones(4, dtype=bool)).path
    path.write_text(damage(path.read_text()))
    assert store.read(record) is None
    assert store.records() == []
    [(where, why)] = store.damaged
    assert where == path
    assert re.search(message, why)
    store.write(record, np.ones(4, dtype=bool))
    assert store.read(record).ok


def test_outcomes_with_another_checksum_do_not_count(tmp_path):
    store, record = Store(tmp_path), make_record()
    path = store.write(record, np.ones(4, dtype=bool)).path
    assert store.outcomes_intact(store.read(record))
    path.with_suffix(".npz").write_bytes(pack(np.zeros(4, dtype=bool)))
    assert not store.outcomes_intact(store.read(record))
    path.with_suffix(".npz").unlink()
    assert not store.outcomes_intact(store.read(record))


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    store, record = Store(tmp_path), make_record()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(record, np.ones(4, dtype=bool))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_leftovers_of_dead_writers_are_ignored_and_removed_when_old(tmp_path):
    store, record = Store(tmp_path), make_record()
    folder = store.write(record, np.ones(4, dtype=bool)).path.parent
    old, young = folder / ".old.json.1.tmp", folder / ".young.json.2.tmp"
    for path in (old, young):
        path.write_text("{")
    os.utime(old, (time.time() - 7200,) * 2)
    store.write(record, np.ones(4, dtype=bool))
    assert not old.exists() and young.exists()
    assert len(store.records()) == 1 and store.damaged == []


def test_records_are_found_by_prefix_or_file(tmp_path):
    store = Store(tmp_path)
    records = [make_record(seed=seed) for seed in range(12)]
    paths = [store.write(r, np.ones(4, dtype=bool)).path for r in records]
    assert load_record(records[0].run_id[:14], tmp_path)[1].run_id == records[0].run_id
    found_store, found = load_record(str(paths[1]), tmp_path / "elsewhere")
    assert found.run_id == records[1].run_id and found_store.outcomes_intact(found)
    with pytest.raises(BenchError, match="no record"):
        load_record("zzz", tmp_path)
    with pytest.raises(BenchError, match="12 records begin with ''"):
        load_record("", tmp_path)
    paths[2].write_text("{")
    with pytest.raises(BenchError, match="not a whole JSON file"):
        load_record(records[2].run_id, tmp_path)


def test_an_edited_record_is_refused():
    data = make_record().to_dict()
    data["spec"]["seed"] = 7
    with pytest.raises(DamagedRecord, match="was edited"):
        Record.from_dict(data, "file.json")


def _write_for_ever(folder, worker, acknowledged):
    store, seed = Store(folder), 0
    while True:
        record = make_record(seed=1000 * worker + seed)
        store.write(record, np.ones(4, dtype=bool))
        acknowledged.send(record.run_id)
        seed += 1


def test_kill_9_loses_no_acknowledged_record_and_halves_none(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = []
    for number in range(3):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_write_for_ever, args=(tmp_path, number, theirs))
        process.start()
        theirs.close()
        workers.append((process, ours))
    for _, pipe in workers:
        assert pipe.poll(60)
    time.sleep(0.5)
    acknowledged = []
    for process, pipe in workers:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while True:
            try:
                acknowledged.append(pipe.recv())
            except EOFError:
                break
    store = Store(tmp_path)
    assert {record.run_id for record in store.records()} >= set(acknowledged)
    assert len(acknowledged) >= 3
    assert store.damaged == []
    assert all(json.loads(path.read_text())["status"] == "ok" for path in store.files())
