"""The text of a record's file says the same as plain JSON would, in less room."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.samples import make_record
from vit_ptq_bench.bench.records.layout import WIDTH, by_site, to_text
from vit_ptq_bench.bench.records.record import DamagedRecord, Record, checksum
from vit_ptq_bench.bench.records.record_file import from_bytes, to_bytes

SITE = st.fixed_dictionaries(
    {"bits": st.integers(2, 8), "scheme": st.sampled_from(["uniform", "log"])}
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(min_size=1), SITE), ANYTHING)
def test_reading_what_was_written_gives_the_same_data(table, more):
    data = {"spec": {"table": table, "more": more}, "more": more}
    assert by_site(json.loads(to_text(data))) == data


@given(ANYTHING)
def test_what_is_no_record_comes_as_it_is(data):
    assert by_site(data) == data
    assert by_site({"spec": data}) == {"spec": data}


@pytest.mark.parametrize(
    "table",
    [
        [{"bits": 4}],
        [{"bits": 4, "sites": 3}],
        ["sites"],
        [{"bits": 4, "sites": ["a"]}, {"bits": 8, "sites": ["a"]}],
        [{"bits": 4, "sites": [["a"]]}],
        [None],
    ],
)
def test_groups_that_are_none_are_damage(table):
    data = json.loads(to_bytes(make_record()))
    data["spec"]["table"] = table
    with pytest.raises(DamagedRecord, match="table"):
        from_bytes(json.dumps(data).encode(), "here")


def test_sites_alike_are_told_once_and_lines_are_short():
    record = make_record()
    text = to_bytes(record).decode()
    table = json.loads(text)["spec"]["table"]
    assert sorted(site for group in table for site in group["sites"]) == ["attention", "qkv.weight"]
    assert max(map(len, text.splitlines())) <= WIDTH + 60  # a long text has no place to break
    assert from_bytes(text.encode(), "here") == record


def test_files_of_the_layout_before_are_read():
    data = make_record().to_dict() | {"schema": 6}
    del data["costs"]
    data |= {"checksum": checksum(data)}
    record = from_bytes(json.dumps(data, indent=1).encode(), "here")
    assert record == make_record() and isinstance(record, Record)
    data["spec"]["table"]["attention"]["bits"] = 8
    with pytest.raises(DamagedRecord):
        from_bytes(json.dumps(data).encode(), "here")
