"""Faults of record files: each is caused here, and none changes a figure without a word."""

import hashlib
import io
import itertools
import json
import multiprocessing
import random
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.outcomes import DamagedOutcomes, pack, unpack
from vit_ptq_bench.bench.records.record import DamagedRecord
from vit_ptq_bench.bench.records.record_file import from_bytes, to_bytes
from vit_ptq_bench.bench.records.schema import SCHEMA
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.records.strict_json import NotStrictJson, parse
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard, write_leaderboard


def proven(**more):
    """A record of 200 images, and outcomes that bear it out."""
    record = make_record(n=200, **more)
    return record, np.arange(200) < 2 * record.metrics["top1"]


def table_row(folder, method):
    text = make_leaderboard(folder).files["leaderboard.md"].split("<summary>")[1]
    (line,) = [line for line in text.splitlines() if line.startswith("|") and f" {method} " in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_flipped_bit_is_found_or_changes_nothing():
    record = make_record(notes=("trains weights",))
    content = to_bytes(record)
    for position in random.Random(0).sample(range(8 * len(content)), 600):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        try:
            assert from_bytes(bytes(changed), "file") == record, position
        except DamagedRecord:
            continue


def test_a_cut_anywhere_is_found():
    content = to_bytes(make_record())
    for length in range(len(content) - 1):
        with pytest.raises(DamagedRecord):
            from_bytes(content[:length], "file")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": %s}' % (b"9" * 30), "more than 64 bits"),
        (b'{"a": %s}' % (b"9" * 10_000), "more than 64 bits"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a": "\xff"}', "invalid start byte"),
        ('{"a": 1}'.encode("utf-16"), "decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b" " * (1 << 25), "at most make sense"),
    ],
)
def test_json_of_two_meanings_is_refused(content, problem):
    with pytest.raises(NotStrictJson, match=problem):
        parse(content)
    with pytest.raises(DamagedRecord, match=problem):
        from_bytes(content, "file")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", -1), ("n", 10**18), ("n", 0), ("metrics", {"top1": 1e300}), ("metrics", {"top1": -0.1}),
        ("intervals", {"top1": [0, 101]}), ("seconds", {"calibrate": -1}), ("size_mb", -1),
        ("environment", {"threads": "two"}), ("environment", {"warnings": [1]}),
        ("error", {"message": 3}), ("error", {"message": "x", "traceback": "no list"}),
    ],
)  # fmt: skip
def test_figures_that_cannot_be_are_refused(key, value):
    data = make_record().to_dict() | {key: value}
    data["checksum"] = "sha256:" + hashlib.sha256(
        json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()  # fmt: skip
    with pytest.raises(DamagedRecord, match=f"{key} must be|n is 0"):
        from_bytes(json.dumps(data).encode(), "file")


def test_a_copy_is_a_finding_and_no_second_seed(tmp_path):
    store = Store(tmp_path)
    record, outcomes = proven()
    path = store.write(record, outcomes).path
    before = table_row(tmp_path, "minmax")
    copies = [
        path.with_name(f"{record.run_id} (1).json"),
        path.parent.parent / "other_model" / path.name,
        tmp_path / "runs" / path.name,
        path.parent / "deeper" / path.name,
    ]
    for copy in copies:
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    assert table_row(tmp_path, "minmax") == before
    findings = make_leaderboard(tmp_path).findings
    assert len(findings) == 4
    for copy in copies:
        assert any(f": {copy.relative_to(tmp_path)}: " in text for text in findings), copy
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    assert main(["leaderboard", "--check", "--results", str(tmp_path)]) == 1


def test_a_record_copied_over_another_is_a_finding(tmp_path, capsys):
    ours, theirs = Store(tmp_path / "ours"), Store(tmp_path / "theirs")
    record, outcomes = proven()
    other = replace(record, metrics=record.metrics | {"top1": 80.0})
    path = ours.write(record, outcomes).path
    source = theirs.write(other, np.arange(200) < 160).path
    write_leaderboard(tmp_path / "ours")
    shutil.copy(source, path)
    (finding,) = make_leaderboard(tmp_path / "ours").findings
    assert "outcomes are missing or damaged" in finding
    shutil.copy(source.with_suffix(".npz"), path.with_suffix(".npz"))
    assert make_leaderboard(tmp_path / "ours").changed_numbers() == [record.run_id]
    assert main(["leaderboard", "--check", "--results", str(tmp_path / "ours")]) == 1
    assert f"{record.run_id} has other numbers than the leaderboard had" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["gone", "empty", "other", "cut"])
def test_without_its_outcomes_a_record_has_no_rank(tmp_path, damage):
    store = Store(tmp_path)
    store.write(*proven(method="best", value=80.0))
    path = store.write(*proven(method="second", value=79.5)).path.with_suffix(".npz")
    assert table_row(tmp_path, "second")[0] == "1"
    if damage == "gone":
        path.unlink()
    else:
        whole = path.read_bytes()
        other = pack(np.zeros(200, dtype=bool))
        path.write_bytes({"empty": b"", "other": other, "cut": whole[:-1]}[damage])
    row = table_row(tmp_path, "second")
    assert row[0] == "" and row[2].startswith("damaged: its per-image outcomes are missing")
    (finding,) = make_leaderboard(tmp_path).findings
    assert finding.startswith("not ranked: runs") and "--overwrite missing" in finding
    text = make_leaderboard(tmp_path).files["leaderboard.csv"]
    assert "79.5" not in text


def test_figures_that_the_outcomes_do_not_give_have_no_rank(tmp_path):
    store = Store(tmp_path)
    record, outcomes = proven()
    store.write(replace(record, metrics=record.metrics | {"top1": 76.0}), outcomes)
    store.write(replace(make_record(method="short"), n=199), outcomes)
    first, second = make_leaderboard(tmp_path).findings
    assert {first.split(": ")[-1], second.split(": ")[-1]} == {
        "it says top1 76.00, its outcomes give 75.00",
        "it says 199 images, its outcomes are of 200",
    }
    assert table_row(tmp_path, "minmax")[0] == table_row(tmp_path, "short")[0] == ""


def _archive(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


BITS = _npy(np.zeros(25, dtype=np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        _archive(bits=BITS),
        _archive(bits=b"text", n=b"text"),
        _archive(bits=BITS, n=_npy(np.array(-5))),
        _archive(bits=BITS, n=_npy(np.array(10**9))),
        _archive(bits=BITS, n=_npy(np.array(200.0))),
        _archive(bits=_npy(np.array(["a", {}], dtype=object)), n=_npy(np.array(2))),
    ],
)
def test_an_archive_with_other_contents_stops_nothing(tmp_path, content):
    with pytest.raises(DamagedOutcomes):
        unpack(content)
    store = Store(tmp_path)
    record, outcomes = proven()
    path = store.write(record, outcomes).path
    path.with_suffix(".npz").write_bytes(content)
    named = replace(record, outcomes_sha256=hashlib.sha256(content).hexdigest())
    path.write_bytes(to_bytes(named))
    store.write(*proven(method="other"))
    assert len(make_leaderboard(tmp_path).findings) == 1
    assert table_row(tmp_path, "other")[0] == "1"


def test_broken_files_of_every_kind_stop_nothing(tmp_path):
    store = Store(tmp_path)
    path = store.write(*proven()).path
    text = path.read_text()
    broken = {
        "deep": "[" * 100_000,
        "surrogate": text.replace("top5", "\\ud800"),
        "huge": text.replace('"n": 200', f'"n": {"9" * 5000}'),
        "list": "[]",
        "bits": text.replace('"bits": 4', '"bits": []'),
        "null": "null",
        "newer": text.replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'),
        "binary": "\x00\x01",
    }
    for name, content in broken.items():
        path.with_name(f"{name}.json").write_text(content)
    (path.parent / "folder.json").mkdir()
    (path.parent / "dangling.json").symlink_to("nowhere")
    made = make_leaderboard(tmp_path)
    assert len(made.findings) == len(broken) + 2
    assert table_row(tmp_path, "minmax")[0] == "1"
    made.write()
    assert main(["leaderboard", "--check", "--results", str(tmp_path)]) == 1


def _write_values(folder, values, start):
    start.wait()
    for seed, value in values:
        record = make_record(n=200, seed=seed, value=value)
        Store(folder).write(record, np.arange(200) < 2 * value)


def test_writers_of_one_id_without_a_lock_lose_no_value(tmp_path):
    """Each of four processes writes other numbers under the same ids, after a record that failed."""
    seeds, values = range(25), (10.0, 20.0, 30.0, 40.0)
    for seed in seeds:
        Store(tmp_path).write(make_record(seed=seed, status="failed"))
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(values))
    writers = [
        context.Process(target=_write_values, args=(tmp_path, [(s, v) for s in seeds], start))
        for v in values
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = Store(tmp_path)
    assert store.damaged == [] and len(store.records()) == len(seeds)
    found = {}
    for path in itertools.chain(store.files(), store.conflicts()):
        record = from_bytes(path.read_bytes(), path)
        found.setdefault(record.spec.seed, []).append(record.metrics["top1"])
        assert store.outcomes(record).mean() * 100 == pytest.approx(record.metrics["top1"])
    assert {seed: sorted(kept) for seed, kept in found.items()} == {
        seed: [*values] for seed in seeds
    }


def test_what_a_killed_writer_took_aside_is_no_conflict(tmp_path):
    store = Store(tmp_path)
    path = store.write(make_record(status="failed")).path
    path.rename(path.with_name(f"{path.stem}.conflict-0123.json"))
    store.write(*proven())
    assert store.conflicts() == [] and make_leaderboard(tmp_path).findings == ()


def test_the_leaderboard_is_replaced_and_never_written_into(tmp_path):
    Store(tmp_path).write(*proven())
    path = write_leaderboard(tmp_path)
    reader = path.open(encoding="utf-8")
    Store(tmp_path).write(*proven(method="newcomer"))
    write_leaderboard(tmp_path)
    assert "newcomer" not in reader.read() and "newcomer" in path.read_text(encoding="utf-8")
    reader.close()
