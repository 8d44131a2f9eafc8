"""Contributed records are checked before they are merged."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.contract.contribution import check_contribution, known_of
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import table_to_dict
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth

CLEAN = {
    "device_name": "a CPU",
    "threads": 1,
    "torch": "2",
    "git_commit": "abc",
    "git_dirty": False,
    "plugins": [],
}
VERSIONS = {name: METHODS.get(name).version for name in ("minmax", "percentile", "fp32")}


def table(method, bits):
    return METHODS.get(method).create({}).bit_table(BitWidth.parse(bits))


def settings(method):
    from dataclasses import asdict

    return asdict(METHODS.get(method).create({}).parameters)


def write(folder, share, *, method="minmax", bits="W4A4", n=1000, change=None, **what) -> Record:
    """A record as the benchmark itself would write it."""
    outcomes = np.arange(n) < n * share / 100
    kind = "reference" if method == "fp32" else "reimplementation"
    own = table(method, bits)
    record = make_record(
        method=method,
        bits=bits,
        value=100 * float(outcomes.mean()),
        fidelity=kind,
        table=table_to_dict(own),
        parameters=settings(method),
        version=VERSIONS[method],
        images=0 if method == "fp32" else 32,
        n=n,
        **what,
    )
    record = replace(record, environment=dict(CLEAN), common_table=dict(own))
    if change is not None:
        record = change(record)
    Store(folder).write(record, outcomes)
    return record


@pytest.fixture
def known(tmp_path):
    """The project's own: full precision, and two widths of one method."""
    folder = tmp_path / "own"
    write(folder, 95, method="fp32", bits="W32A32")
    write(folder, 80, bits="W6A6")
    write(folder, 60)
    return known_of([folder])


def words(folder, known):
    return {one.level: "; ".join(one.words) for one in check_contribution(str(folder), known)}


def test_a_record_like_ours_is_ok(tmp_path, known):
    write(tmp_path / "new", 61, seed=1)
    write(tmp_path / "new", 75, method="percentile")
    assert words(tmp_path / "new", known) == {"ok": ""}


def environment(**changes):
    return lambda record: replace(record, environment={**CLEAN, **changes})


@pytest.mark.parametrize(
    ("share", "what", "said"),
    [
        (99.9, {"seed": 1}, "is 4.9 points above full precision"),
        (90, {"bits": "W3A3"}, "at W3A3 is 30.0 points above W4A4"),
        (30, {"seed": 1}, "is -30.0 points from seed 0 of the same method"),
        (
            60,
            {"seed": 1, "change": environment(git_dirty=True)},
            "ran from a checkout with changes",
        ),
        (60, {"seed": 1, "change": environment(git_commit=None)}, "says no commit"),
        (
            60,
            {"seed": 1, "change": environment(plugins=[{"file": "mine.py"}])},
            "plug-ins: mine.py",
        ),
        (60, {"model": "other"}, "its weights (sha256:0) are not known here"),
        (60, {"task": "imagenet"}, "its data (sha256:1) are not known here"),
        (60, {"task": "imagenet"}, "its full-precision run is not beside it"),
        (55, {}, "has 55.00 where the same run has 60.00 here"),
    ],
)
def test_what_somebody_has_to_look_at(tmp_path, known, share, what, said):
    write(tmp_path / "new", share, **what)
    found = words(tmp_path / "new", known)
    assert said in found["look"]


def spec_of(record, **method):
    return replace(record, spec=replace(record.spec, method=replace(record.spec.method, **method)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: spec_of(r, name="mine"), "method 'mine' is not here: contribute its file too"),
        (lambda r: spec_of(r, version=99), "is of version 99 of minmax"),
        (lambda r: spec_of(r, parameters={"x": 1}), "no parameter 'x'"),
        (
            lambda r: replace(r, spec=replace(r.spec, table=table("minmax", "W8A8"))),
            "its bit table is not that of minmax at W4A4",
        ),
        (
            lambda r: replace(r, metrics={"top1": 70.0, "top5": 99.0}),
            "it says top1 70.00, its outcomes give 60.00",
        ),
        (
            lambda r: replace(r, status="failed", error={"message": "x", "type": "E"}),
            "ended as failed: there is no figure to merge",
        ),
    ],
    ids=["method", "version", "parameter", "table", "outcomes", "failed"],
)
def test_what_cannot_be_merged(tmp_path, known, change, said):
    write(tmp_path / "new", 60, change=change)
    assert said in words(tmp_path / "new", known)["refused"]


def test_damaged_files_and_records_without_outcomes_are_refused(tmp_path, known):
    folder = tmp_path / "new"
    record = write(folder, 60)
    path = Store(folder).path(record)
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert "run_id is" in words(folder, known)["refused"]
    path.write_text(text[:100])
    assert "not a whole JSON file" in words(folder, known)["refused"]
    path.unlink()
    Store(folder).write(replace(record, outcomes_sha256=None))
    assert "no per-image outcomes" in words(folder, known)["refused"]


def test_the_command_says_it_in_lines_and_in_its_status(tmp_path, capsys):
    own, new = tmp_path / "own", tmp_path / "new"
    write(own, 95, method="fp32", bits="W32A32")
    record = write(new, 60, seed=1)
    command = ["check", str(new), "--against", str(own)]
    assert main(command) == 0
    assert capsys.readouterr().out == "1 ok, 0 look, 0 refused\n"
    assert main(["check", str(Store(new).path(record)), "--against", str(own)]) == 0
    capsys.readouterr()
    above = write(new, 99.9, seed=2)
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    levels = {one["source"]: one["level"] for one in found}
    assert len(levels) == 2 and levels[above.run_id] == "look"
    Store(new).path(record).write_text("{}")
    assert main(command) == 1
    assert "refused " in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--against", str(own)]) == 2
    assert "holds no records" in capsys.readouterr().err
