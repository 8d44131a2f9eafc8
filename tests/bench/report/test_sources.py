"""Images that were made, or are of another domain, never share a table with training images."""

import io

import pandas as pd

from tests.bench.samples import MADE, make_record, on
from vit_ptq_bench.bench.records.source import SourceSpec
from vit_ptq_bench.bench.report.frame import SOURCE, to_frame
from vit_ptq_bench.bench.report.latex import render_latex
from vit_ptq_bench.bench.report.leaderboard import to_csv
from vit_ptq_bench.bench.report.markdown import render
from vit_ptq_bench.bench.report.page.data import page_data
from vit_ptq_bench.bench.report.show import describe
from vit_ptq_bench.bench.report.tables import Evidence, tables


def several():
    own = [make_record(method=name, value=value) for name, value in (("minmax", 70), ("gptq", 80))]
    return [*own, on(make_record(value=40), MADE), make_record(method="fp32", fidelity="reference")]


def found(records):
    return tables(records, lambda record: Evidence())


def test_sources_have_tables_of_their_own():
    own, made = found(several())
    assert [row.label for row in own.rows] == ["gptq", "minmax"]
    assert [row.label for row in made.rows] == ["minmax"] and made.rows[0].value == 40
    assert made.rows[0].standing.rank == 1 and made.missing == ()
    assert own.place.source == "" and made.place.source == "psaq-vit steps=30"
    assert own.reference.value == made.reference.value  # full precision is the same


def test_other_settings_of_a_source_are_another_source():
    usual = on(make_record(), SourceSpec("psaq-vit", 1, {}))
    assert len(found([usual, on(make_record(), MADE)])) == 2


def test_titles_and_footnotes_say_so():
    text = render(several(), found(several()), [], [])
    title = (
        "fashion (version 1), protocol `equal`, calibration on psaq-vit steps=30 (0 real images)"
    )
    assert f"## {title}\n" in text
    assert "0 real images, calibration on those made by psaq-vit steps=30" in text
    assert "calibration on psaq-vit steps=30 (0 real images)" in render_latex(found(several()))
    shown = describe(on(make_record(), MADE))
    assert "32 images, draw 0; 0 real images" in shown and "steps 30" in shown


def test_the_page_keeps_them_apart():
    cells = page_data(several(), found(several()), [])["cells"]
    assert len({(cell["name"], cell["scope"]) for cell in cells}) == 2
    assert "source" not in cells[0] and cells[1]["source"] == "psaq-vit steps=30"


def test_the_csv_has_the_source_where_there_is_one():
    frame = pd.read_csv(io.StringIO(to_csv(several())), keep_default_na=False)
    assert sorted(frame[SOURCE]) == ["", "", "", "psaq-vit steps=30"]
    assert SOURCE not in pd.read_csv(io.StringIO(to_csv(several()[:2])))
    assert SOURCE in to_frame(several()[:2])
