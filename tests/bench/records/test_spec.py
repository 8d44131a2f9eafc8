"""The specification of a run: typed, and the same bytes as ever."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.records.layout import by_site
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import RunSpec, WrongSpec

ROOT = Path(__file__).parents[3]
STORED = sorted((ROOT / "results").glob("**/runs/*/*/*.json"))


def test_every_stored_record_keeps_its_id_and_its_specification():
    assert len(STORED) >= 322
    for path in STORED:
        data = by_site(json.loads(path.read_text(encoding="utf-8")))
        record = Record.from_dict(data, path)
        assert record.spec.to_dict() == data["spec"]
        assert record.run_id == record.spec.run_id == data["run_id"] == path.stem


def test_a_specification_survives_the_way_there_and_back():
    spec = make_record().spec
    assert RunSpec.from_dict(spec.to_dict()) == spec
    scoped = replace(spec, scope="full")
    assert RunSpec.from_dict(scoped.to_dict()) == scoped
    assert scoped.run_id != spec.run_id and "scope" not in spec.to_dict()
    names = ("rotate-heads", "shift-norms")
    turned = make_record(transforms=names).spec
    assert RunSpec.from_dict(turned.to_dict()) == turned and turned.method.transforms == names
    assert turned.run_id != spec.run_id and "transforms" not in spec.to_dict()["method"]
    assert turned.run_id != make_record(transforms=names[::-1]).spec.run_id


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("method.name", 3, "spec.method.name must be a text, not 3"),
        ("task.limit", "all", "spec.task.limit must be a whole number or null, not 'all'"),
        ("calibration.draw", None, "spec.calibration.draw must be a whole number, not None"),
        ("seed", True, "spec.seed must be a whole number, not True"),
        ("table", {"qkv.weight": {"bits": 4, "colour": "red"}}, "no field"),
        ("colour", "red", "parts that this program does not know.*colour"),
        ("method.colour", "red", "unexpected keyword argument 'colour'"),
        ("method.transforms", "red", "spec.method.transforms must be a list of texts, not 'red'"),
        ("method.transforms", [1], "spec.method.transforms must be a list of texts"),
        ("method.transforms", [], "parts that this program does not know"),
    ],
)
def test_what_is_no_specification_is_refused(path, value, message):
    data = make_record().spec.to_dict()
    *outer, last = path.split(".")
    place = data
    for key in outer:
        place = place[key]
    place[last] = value
    with pytest.raises(WrongSpec, match=message):
        RunSpec.from_dict(data)


@pytest.mark.parametrize("path", ["method", "method.version", "table", "precision"])
def test_what_is_missing_is_named(path):
    data = make_record().spec.to_dict()
    *outer, last = path.split(".")
    place = data
    for key in outer:
        place = place[key]
    del place[last]
    with pytest.raises(WrongSpec, match=f"missing: spec.{path}"):
        RunSpec.from_dict(data)
