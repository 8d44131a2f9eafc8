"""What was written for convolutional networks and gains nothing on transformers says so in its row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.report.test_tables import nothing
from tests.bench.samples import make_record
from vit_ptq_bench.bench.report.markdown import render
from vit_ptq_bench.bench.report.origins import BEGIN_WITH, gains_nothing
from vit_ptq_bench.bench.report.page.data import page_data
from vit_ptq_bench.bench.report.tables import Evidence, Row, tables
from vit_ptq_bench.methods.api.registry import METHODS

WORDS = "written for convolutional networks, and here not above repq-vit, with which it begins"


def rows_of(values: dict[str, float]) -> dict[str, Row]:
    """Rows of one table, tested image by image: of 1,000 images the first so many are right."""
    records = [make_record(method=name, value=value) for name, value in values.items()]
    right = {one.run_id: np.arange(1000) < 10 * values[one.spec.method.name] for one in records}
    (table,) = tables(records, lambda one: Evidence(right[one.run_id]))
    return {row.label: row for row in table.rows}


@pytest.mark.parametrize(
    ("value", "words"), [(60.0, WORDS), (70.0, WORDS), (70.2, WORDS), (90.0, "")]
)
def test_a_row_that_is_not_above_what_it_begins_with_says_so(value: float, words: str) -> None:
    rows = rows_of({"subsetq": value, "repq-vit": 70.0, "gptq": 65.0})
    assert gains_nothing(rows["subsetq"], list(rows.values())) == words
    assert gains_nothing(rows["gptq"], list(rows.values())) == ""


def test_without_the_other_row_or_a_result_nothing_is_said() -> None:
    alone = rows_of({"subsetq": 60.0, "gptq": 70.0})
    assert gains_nothing(alone["subsetq"], list(alone.values())) == ""
    records = [make_record(method="subsetq", status="failed"), make_record(method="repq-vit")]
    (table,) = tables(records, nothing)
    assert {gains_nothing(row, table.rows) for row in table.rows} == {""}


def test_markdown_and_page_have_the_words() -> None:
    records = [
        make_record(method=name, value=v) for name, v in (("subsetq", 60.0), ("repq-vit", 70.0))
    ]
    found = tables(records, nothing)
    assert render(records, found, ()).count(WORDS) == 1
    data = page_data(records, found, ())
    assert {row["label"]: row["convention"] for row in data["rows"]}["subsetq"].endswith(WORDS)


def test_they_are_methods_and_say_themselves_what_they_begin_with() -> None:
    for name, base in BEGIN_WITH.items():
        assert base in METHODS.module_dict
        assert "RepQ-ViT" in (METHODS.get(name).__doc__ or ""), name
