"""The markdown page says what the tables say, the answer first."""

import html
import random
import re
import time
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from tests.bench.report.test_tables import RECORDS, hits, nothing
from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.records.spec import CalibrationSpec
from vit_ptq_bench.bench.report.footnotes import convention
from vit_ptq_bench.bench.report.markdown import footnote_mark, render
from vit_ptq_bench.bench.report.show import describe
from vit_ptq_bench.bench.report.tables import tables
from vit_ptq_bench.bench.report.text import code, plain
from vit_ptq_bench.methods.api.registry import METHODS

CELL = "vit_mini W4A4"
EQUAL = "fashion (version 1), protocol `equal`"


def page(records, evidence=nothing, findings=()):
    return render(records, tables(records, evidence), findings)


def rows_of(text, cell=CELL):
    """The rows of the table of a cell under protocol `equal` on all images, as lists of cells."""
    own = text if text.count(f"<summary>{cell}:") == 1 else section(text, EQUAL)
    part = re.split(rf"<summary>{re.escape(cell)}: \d+ methods?</summary>", own)[1]
    lines = [line for line in part.split("</details>")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(*records):
    return sorted(row[1] for row in rows_of(page(list(records))))


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_answer_stands_on_the_first_screen():
    text = page(RECORDS, hits)
    before = text.split("\n## ")[0] + section(text, "Which method to use")
    assert len(before.splitlines()) < 24
    answers = [line for line in before.splitlines() if line.startswith("| vit_mini")]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in answers] == [
        ["vit_mini", "W4A4", "95.0", "repq", "90.0 [89.0, 91.0]", "near", "near", "1.2"],
    ]  # and none where there is one method alone


def test_bits_that_are_shared_out_stand_below_with_what_they_are():
    bits = ("W4A4", "W4A4:mixed")
    records = [make_record(method=m, bits=b, value=60.0) for m in "abc" for b in bits]
    answers = section(page(records, hits), "Which method to use")
    first, folded = answers.split("<details>")
    assert "| W4A4 " in first and ":mixed" not in first
    assert "| W4A4:mixed " in folded and "bits differ from operation to operation" in folded


def test_results_without_an_answer_say_why():
    text = section(page(RECORDS[:3], hits), "Which method to use")
    assert "| vit_mini" not in text and "Tables of fewer than three\nmethods" in text


def test_tables_rank_and_keep_every_run():
    twin = {**TABLE, "attention": {**TABLE["attention"], "scheme": "twin-softmax"}}
    records = [*RECORDS, make_record(method="twin", value=10.0, table=twin)]
    text = page(records, hits)
    rows = rows_of(text)
    assert [row[:2] for row in rows] == [
        ["", "fp32"], ["1", "repq"], ["1", "near"], ["3", "seeded"], ["4", "minmax"],
        ["5", "twin"], ["", "omse"],
    ]  # fmt: skip
    assert rows[1][2:5] == ["90.00 [89.0, 91.0]", "99.0", "5.0"]
    assert rows[3][2] == "74.00 ± 4.00 (3)"
    assert rows[5][9] == "(a)" and "\n(a) attention: twin-softmax\n" in text
    assert rows[6][2] == "failed: it broke &#124; badly"
    ids = {record.run_id[:8] for record in records if record.spec.method.name == "repq"}
    assert rows[1][8].strip("`") in ids and rows[3][8].endswith("` +2")
    missing = rows_of(text, "vit_mini W3A3")
    assert [row[1] for row in missing if "not run" in row] == [
        "minmax", "near", "omse", "seeded", "twin",
    ]  # fmt: skip


def test_what_could_not_be_tested_is_marked_and_explained():
    text = page(RECORDS, nothing)
    assert [row[0] for row in rows_of(text)] == ["", "1 ~", "1 ~", "3 ~", "4 ~", ""]
    answer = section(text, "Which method to use")
    assert re.search(r"\| repq +\| 90.0 \[89.0, 91.0\] +\| near ~ +\| near +\|", answer)
    assert "`~`: for some of them there is no such test" in answer
    assert "`~` behind a rank" in section(text, "How to read it") and "?" not in text


def test_what_cannot_be_held_against_anything_has_no_rank_and_no_cheapest():
    text = page([replace(r, intervals={}, standard_errors={}) for r in RECORDS], nothing)
    assert [row[0] for row in rows_of(text)] == ["", "-", "-", "-", "-", ""]
    answer = section(text, "Which method to use")
    assert re.search(r"\| repq +\| 90.0 +\| - +\| - +\| - +\|", answer)


def test_protocols_and_subsets_have_sections_of_their_own():
    text = page([*RECORDS, make_record(method="other", limit=10)])
    titles = re.findall(r"^## (fashion .*)$", text, re.MULTILINE)
    assert titles == [
        "fashion (version 1, 10 images of the evaluation set), protocol `equal`",
        "fashion (version 1), protocol `authors`",
        EQUAL,
    ]
    assert "| other" in section(text, titles[0]) and "| other" not in section(text, titles[2])


def test_settings_of_one_method_are_told_apart():
    pair = [
        make_record(method="m", value=v, parameters={"a": a, "same": 1})
        for a, v in ((1, 50.0), (2, 60.0))
    ]
    assert [row[1] for row in rows_of(page(pair))] == ["m (a=2)", "m (a=1)"]


def test_labels_are_kept_apart_by_settings_and_settings_by_labels():
    def one(variant, **more):
        return make_record(method="m", variant=variant, **more)

    assert names(one("x", parameters={"a": 1, "b": 1}), one("x", parameters={"a": 2, "b": 1})) == [
        "m x (a=1)", "m x (a=2)",
    ]  # fmt: skip
    assert names(one("x", parameters={"a": 1}), one(None, parameters={"a": 2})) == ["m", "m x"]
    assert names(one("y"), one("x", seed=1), one(None, seed=2)) == ["m x/y"]
    assert names(one("x", version=1), one("x", version=2)) == [
        "m x (version=1)",
        "m x (version=2)",
    ]
    assert names(one(None, images=8), one(None, images=16)) == [
        "m (calibration images=16)", "m (calibration images=8)",
    ]  # fmt: skip


def test_transforms_tell_rows_apart_and_stand_in_their_footnotes():
    turned = ("rotate-heads", "shift-norms")
    records = [make_record(method="m"), make_record(method="m", transforms=turned, notes=("said",))]
    turned_name = "m (transforms=rotate-heads+shift-norms) †"
    assert names(*records) == ["m (transforms=None)", turned_name]
    words = "transformed first: rotate-heads, then shift-norms"
    text = page(records)
    assert f"\n(a) does not compare: transformed; {words}; said\n" in f"{text}\n"
    assert f"static; {words}; said" in describe(records[1])
    assert "transform    rotate-heads\ntransform    shift-norms\n" in describe(records[1])
    assert names(make_record(method="m", transforms=turned, variant="rotated")) == ["m rotated †"]


def test_a_seed_counts_once_in_a_row():
    images = [CalibrationSpec(32, 0, content) for content in ("sha256:a", "sha256:b")]
    record = make_record(method="m")
    twins = [replace(record, spec=replace(record.spec, calibration=c)) for c in images]
    rows = rows_of(page([*twins, make_record(method="m", seed=1)]))
    assert sorted(row[1] for row in rows) == [
        "m", *sorted(f"m (run {twin.run_id[:8]})" for twin in twins),
    ]  # fmt: skip
    assert not any("seeds" in row[2] for row in rows)


def test_what_a_table_tells_is_not_said_again_by_the_notes():
    for name in METHODS.module_dict:
        for note in METHODS.get(name).create().notes():
            assert not note.startswith(("floating point:", "dynamic:", "static", "every site"))
    record = make_record(notes=("takes its time",))
    assert convention(record) == "every site quantized; static; takes its time"
    assert convention(make_record(status="failed")) == ""


def test_many_records_are_fast():
    records = [
        make_record(method=f"m{m}", model=f"v{v}", seed=s, bits=b, value=50.0 + m)
        for m in range(20) for v in range(5) for s in range(7) for b in ("W4A4", "W3A3", "W6A6")
    ]  # fmt: skip
    began = time.monotonic()
    page(records)
    assert time.monotonic() - began < 30


def test_a_row_has_one_name_in_every_table():
    text = page(
        [
            make_record(method="m", parameters={"a": 1}),
            make_record(method="m", parameters={"a": 2}),
            make_record(method="m", parameters={"a": 2}, bits="W3A3"),
            make_record(method="m", variant="x", parameters={"a": 3}, bits="W3A3", status="failed"),
        ]
    )
    assert [row[1:3] for row in rows_of(text, "vit_mini W3A3")] == [
        ["m (a=2)", "75.00 [74.0, 76.0]"],
        ["m x", "failed: it broke &#124; badly"],
        ["m (a=1)", "not run"],
    ]


def meanings(text):
    notes = dict(re.findall(r"^\((\w+)\) (.*)$", text, re.MULTILINE))
    return {row[1]: notes.get(row[9][1:-1], "") for row in rows_of(text)}


def test_footnotes_carry_the_methods_own_words():
    twin = {**TABLE, "attention": {**TABLE["attention"], "scheme": "twin-softmax"}}
    said = {
        "plain": (),
        "noted": ("takes its\ntime", "static weights"),
        "trains": ("trains weights; in two steps",),
        "trains-too": ("trains weights; in two steps",),
    }
    records = [
        make_record(method=name, notes=notes, table=twin if name == "trains" else None)
        for name, notes in said.items()
    ]
    records.append(make_record(method="many", images=256))
    assert meanings(page(records)) == {
        "many": "256 calibration images",
        "plain": "",
        "noted": "takes its time; static weights",
        "trains": "attention: twin-softmax; trains weights; in two steps",
        "trains-too": "trains weights; in two steps",
    }


def test_of_rows_on_a_gpu_the_memory_is_said_to_be_of_the_evaluation_too():
    gpu = make_record(method="on-gpu")
    gpu = replace(gpu, environment={**gpu.environment, "device": "cuda:0"})
    found = meanings(page([gpu, make_record(method="on-cpu")]))
    assert found["on-cpu"] == ""
    assert found["on-gpu"] == "MB: what was reserved of the GPU, evaluation included"


def test_footnotes_are_told_once_in_a_page():
    records = [make_record(method="m", notes=("said",), bits=bits) for bits in ("W4A4", "W3A3")]
    text = page(records)
    assert text.count("(a) said") == 1 and text.count("| (a) ") == 2


def test_every_footnote_has_its_own_mark():
    records = [make_record(method=f"m{k:02}", notes=(f"word {k}",)) for k in range(60)]
    text = page(records)
    marks = re.findall(r"^\((\w+)\) ", text, re.MULTILINE)
    assert marks[:2] + marks[25:28] + marks[51:54] == ["a", "b", "z", "aa", "ab", "az", "ba", "bb"]
    assert [footnote_mark(k) for k in (26 + 26**2 - 1, 26 + 26**2)] == ["zz", "aaa"]
    assert meanings(text) == {f"m{k:02}": f"word {k}" for k in range(60)}


def test_order_of_the_records_does_not_matter():
    expected = page(RECORDS, hits)
    for seed in range(5):
        shuffled = RECORDS.copy()
        random.Random(seed).shuffle(shuffled)
        assert page(shuffled, hits) == expected


@pytest.mark.parametrize(
    "name",
    [
        "a|b", "two\nlines", "<script>alert(1)</script>", "</details>", "a & b",
        "![x](http://example.org/x.png)", "[a](javascript:1)", "*bold* _slanted_ `code` ~~out~~", "\\[x\\]",
    ],
)  # fmt: skip
def test_names_are_shown_as_text(name):
    text = page([make_record(method="m", variant=name)])
    (row,) = rows_of(text)
    assert row[1] == f"m {plain(name)}" and len(row) == 10
    assert as_shown(f"m {plain(name)}") == f"<p>m {html.escape(' '.join(name.split()))}</p>"
    assert "<script" not in text and text.count("</details>") == 1


def as_shown(text):
    """What markdown makes of a text, by the parser that the documentation's site is built with."""
    own = MarkdownIt("commonmark", {"linkify": False}).enable(["strikethrough", "table"])
    return own.render(text).strip()


def test_addresses_are_no_links_and_words_with_underscores_stay_readable():
    assert plain("see http://a.b or WWW.c.d") == "see http&#58;//a.b or WWW&#46;c.d"
    assert plain("vit_tiny_patch16") == "vit_tiny_patch16" and plain("_a_") == "\\_a\\_"


def test_names_in_headings_and_between_tags_are_text_too():
    image = "![x](http://example.org/x.png)"
    text = page([make_record(task=image, model=image, protocol="equal`")])
    assert f"## {plain(image)} (version 1), protocol {code('equal`')}" in text
    assert f"<summary>{image} W4A4: 1 method</summary>" in text  # markdown is off between tags
    assert text.count(image) == 1 and code("equal`") == "`equal'`"


def test_a_page_of_failures_or_of_full_precision_alone_says_so():
    assert "No method has a result here. 1 record, none ended well." in page(
        [make_record(status="failed")]
    )
    text = page(RECORDS[:1])
    assert "No method has a result here. 1 record, 1 of full precision alone." in text
    assert "## Which method to use" not in text
    assert "No method has a result here" in page([])


def test_findings_are_named_first_and_told_last():
    text = page(RECORDS, findings=["a file <b> is damaged"])
    assert "**1 of its files" in text.split("\n## ")[0]
    assert section(text, "Findings").strip().startswith("- a file &lt;b&gt; is damaged")


def test_a_task_without_a_secondary_metric_keeps_its_columns_in_place() -> None:
    """Boxes alone have no mask AP: its cell stays empty, and nothing moves under another head."""
    record = replace(
        make_record(method="minmax"),
        primary_metric="box_ap",
        metric_titles=(("mask_ap", "mask AP"), ("box_ap50", "box AP50"), ("box_ap75", "box AP75")),
        metrics={"box_ap": 40.0, "box_ap50": 61.0, "box_ap75": 22.0},
        intervals={"box_ap": [39.0, 41.0]},
        standard_errors={"box_ap": 0.5},
    )
    (row,) = rows_of(page([record]))
    assert row[2:6] == ["40.00 [39.0, 41.0]", "", "61.0", "22.0"]
    assert row[7:9] == ["1.2", "512"]
