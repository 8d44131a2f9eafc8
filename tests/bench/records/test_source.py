"""The source of calibration images in a record."""

import copy

import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.records.spec import RunSpec, WrongSpec

MADE = {"name": "psaq-vit", "version": 1, "parameters": {"steps": 30}}
READ = {"name": "folder", "data": "sha256:0123456789"}


def data(source=None):
    found = copy.deepcopy(make_record().spec.to_dict())
    if source is not None:
        found["calibration"]["source"] = source
    return found


@pytest.mark.parametrize("source", [None, MADE, READ], ids=["training", "made", "folder"])
def test_a_specification_is_read_as_it_was_written(source):
    spec = RunSpec.from_dict(data(source))
    assert spec.to_dict() == data(source)


def test_it_is_part_of_the_identity():
    ids = {RunSpec.from_dict(data(source)).run_id for source in (None, MADE, READ)}
    assert len(ids) == 3


def test_it_is_marked():
    made, read = (RunSpec.from_dict(data(source)).calibration for source in (MADE, READ))
    assert made.marking == "0 real images, calibration on those made by psaq-vit steps=30"
    assert read.marking == "calibration on images of another folder 01234567"
    assert RunSpec.from_dict(data()).calibration.marking == ""


@pytest.mark.parametrize(
    "source",
    [
        *(None, "psaq-vit", [], {}, {"name": "noise"}, {"name": ["folder"]}, {"name": "folder"}),
        MADE | {"version": "1"},
        MADE | {"parameters": 3},
        READ | {"data": 1},
        READ | {"path": "/data"},
        MADE | READ,
    ],
    ids=str,
)
def test_what_is_no_source_is_refused(source):
    wrong = data()
    wrong["calibration"]["source"] = source
    with pytest.raises(WrongSpec, match=r"spec\.calibration\.source"):
        RunSpec.from_dict(wrong)
