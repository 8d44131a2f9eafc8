"""The leaderboard is a pure function of records and says what they say."""

import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.spec import CalibrationSpec
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.compare import compare
from vit_ptq_bench.bench.report.footnotes import convention
from vit_ptq_bench.bench.report.frame import to_frame
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard, write_leaderboard
from vit_ptq_bench.bench.report.markdown import footnote_mark, render
from vit_ptq_bench.bench.report.show import describe, show
from vit_ptq_bench.bench.report.significance import mcnemar
from vit_ptq_bench.methods.api.registry import METHODS

ROOT = Path(__file__).parents[3]
HEADING = "vit_mini, W4A4, `equal`"


def _nothing(_):
    return None


def _rows(text, heading):
    part = text.split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _proven(record):
    """A record of 100 images with outcomes that bear it out."""
    if not record.ok:
        return record, None
    return replace(record, n=100), np.arange(100) < record.metrics["top1"]


@pytest.fixture
def records():
    twin = {**TABLE, "attention": {**TABLE["attention"], "scheme": "twin-softmax"}}
    return [
        make_record(method="fp32", bits="W32A32", value=95.0, fidelity="reference"),
        make_record(method="minmax", value=60.0),
        make_record(method="repq", value=90.0, table=twin),
        make_record(method="omse", status="failed"),
        make_record(method="repq", value=80.0, bits="W3A3", table=twin),
        make_record(method="minmax", value=70.0, protocol="authors"),
        *(make_record(method="seeded", value=v, seed=s) for s, v in enumerate((70.0, 74.0, 78.0))),
    ]


def test_tables_rank_and_keep_every_run(records):
    text = render(records, _nothing, [])
    rows = _rows(text, "vit_mini, W4A4, `equal`")
    assert [row[:2] for row in rows] == [
        ["-", "fp32"], ["1", "repq"], ["2 ?", "seeded"], ["3 ?", "minmax"], ["", "omse"],
    ]  # fmt: skip
    assert rows[1][2] == "90.00 [89.0, 91.0]" and rows[1][4] == "5.0" and rows[1][10] == "(a)"
    assert rows[2][2] == "74.00 ± 4.00 (3 seeds)"
    assert rows[4][2] == "failed: it broke / badly"
    assert "(a) attention: twin-softmax" in text
    missing = _rows(text, "vit_mini, W3A3, `equal`")
    assert [row[1] for row in missing if "not run" in row] == ["minmax", "omse", "seeded"]


def test_protocols_never_share_a_table(records):
    text = render(records, _nothing, [])
    authors = _rows(text, "vit_mini, W4A4, `authors`")
    assert [row[1] for row in authors] == ["fp32", "minmax"]
    assert authors[1][2].startswith("70.00")


def test_subsets_never_share_a_table(records):
    text = render([*records, make_record(method="other", limit=10)], _nothing, [])
    assert "10 images of the evaluation set" in text
    sections = text.split("\n## ")
    part = next(s for s in sections if "10 images of the evaluation set" in s)
    assert "| other" in part and "| repq" not in part
    assert sum("| other" in section for section in sections) == 1


def test_settings_of_one_method_are_told_apart():
    pair = [
        make_record(method="m", value=v, parameters={"a": a, "same": 1})
        for a, v in ((1, 50.0), (2, 60.0))
    ]
    rows = _rows(render(pair, _nothing, []), "vit_mini, W4A4, `equal`")
    assert [row[1] for row in rows] == ["m (a=2)", "m (a=1)"]


def _names(*records):
    return sorted(row[1] for row in _rows(render(list(records), _nothing, []), HEADING))


def test_variants_are_rows_under_their_labels():
    text = render(
        [
            make_record(
                method="m", variant=label, parameters={"a": a}, seed=seed, value=value + seed
            )
            for a, (label, value) in enumerate((("base", 50.0), ("+x", 70.0), ("all", 60.0)))
            for seed in (0, 2)
        ],
        _nothing,
        [],
    )
    rows = _rows(text, HEADING)
    assert [row[:3] for row in rows] == [
        ["1", "m +x", "71.00 ± 1.41 (2 seeds)"],
        ["2 ?", "m all", "61.00 ± 1.41 (2 seeds)"],
        ["3 ?", "m base", "51.00 ± 1.41 (2 seeds)"],
    ]
    assert "| m +x     | 71.0" in text.split("###")[0]


def test_labels_are_kept_apart_by_settings_and_settings_by_labels():
    def one(variant, **more):
        return make_record(method="m", variant=variant, **more)

    assert _names(one("x", parameters={"a": 1, "b": 1}), one("x", parameters={"a": 2, "b": 1})) == [
        "m x (a=1)", "m x (a=2)",
    ]  # fmt: skip
    assert _names(one("x", parameters={"a": 1}), one(None, parameters={"a": 2})) == ["m", "m x"]
    assert _names(one("y"), one("x", seed=1), one(None, seed=2)) == ["m x/y"]
    assert _names(one("x", version=1), one("x", version=2)) == [
        "m x (version=1)",
        "m x (version=2)",
    ]
    assert _names(one(None, images=8), one(None, images=16)) == [
        "m (calibration images=16)", "m (calibration images=8)",
    ]  # fmt: skip


def test_transforms_tell_rows_apart_and_stand_in_their_footnotes():
    turned = ("rotate-heads", "shift-norms")
    records = [make_record(method="m"), make_record(method="m", transforms=turned, notes=("said",))]
    assert _names(*records) == ["m (transforms=None)", "m (transforms=rotate-heads+shift-norms)"]
    words = "transformed first: rotate-heads, then shift-norms"
    text = render(records, _nothing, [])
    assert f"\n(a) {words}; said\n" in f"{text}\n"
    assert f"static; {words}; said" in describe(records[1])
    assert "transform    rotate-heads\ntransform    shift-norms\n" in describe(records[1])
    assert _names(make_record(method="m", transforms=turned, variant="rotated")) == ["m rotated"]


def test_a_seed_counts_once_in_a_row():
    images = [CalibrationSpec(32, 0, content) for content in ("sha256:a", "sha256:b")]
    record = make_record(method="m")
    twins = [replace(record, spec=replace(record.spec, calibration=c)) for c in images]
    rows = _rows(render([*twins, make_record(method="m", seed=1)], _nothing, []), HEADING)
    assert sorted(row[1] for row in rows) == [
        "m", *sorted(f"m (run {twin.run_id[:8]})" for twin in twins),
    ]  # fmt: skip
    assert not any("seeds" in row[2] for row in rows)


def test_a_row_has_one_name_in_every_table():
    text = render(
        [
            make_record(method="m", parameters={"a": 1}),
            make_record(method="m", parameters={"a": 2}),
            make_record(method="m", parameters={"a": 2}, bits="W3A3"),
            make_record(method="m", variant="x", parameters={"a": 3}, bits="W3A3", status="failed"),
        ],
        _nothing,
        [],
    )
    assert [row[1:3] for row in _rows(text, "vit_mini, W3A3, `equal`")] == [
        ["m (a=2)", "75.00 [74.0, 76.0]"],
        ["m x", "failed: it broke / badly"],
        ["m (a=1)", "not run"],
    ]


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
    records.append(
        make_record(method="fp32", bits="W32A32", fidelity="reference", notes=("not quantized",))
    )
    text = render(records, _nothing, [])
    notes = dict(re.findall(r"^\((\w)\) (.*)$", text, re.MULTILINE))
    found = {row[1]: notes.get(row[10][1:-1], "") for row in _rows(text, HEADING)}
    assert found == {
        "fp32": "",
        "plain": "",
        "noted": "takes its time; static weights",
        "trains": "attention: twin-softmax; trains weights; in two steps",
        "trains-too": "trains weights; in two steps",
    }


def test_what_a_table_tells_is_not_said_again_by_the_notes():
    for name in METHODS.module_dict:
        for note in METHODS.get(name).create().notes():
            assert not note.startswith(("floating point:", "dynamic:", "static", "every site"))
    record = make_record(notes=("takes its time",))
    assert convention(record) == "every site quantized; static; takes its time"
    assert convention(make_record(status="failed")) == ""


def test_every_footnote_has_its_own_mark():
    records = [make_record(method=f"m{k:02}", notes=(f"word {k}",)) for k in range(60)]
    text = render(records, _nothing, [])
    notes = re.findall(r"^\((\w+)\) (.*)$", text, re.MULTILINE)
    marks = [mark for mark, _ in notes]
    assert len(set(marks)) == 60
    assert marks[:2] + marks[25:28] + marks[51:54] == ["a", "b", "z", "aa", "ab", "az", "ba", "bb"]
    assert [footnote_mark(k) for k in (26 + 26**2 - 1, 26 + 26**2)] == ["zz", "aaa"]
    meaning = dict(notes)
    assert {row[1]: meaning[row[10][1:-1]] for row in _rows(text, HEADING)} == {
        f"m{k:02}": f"word {k}" for k in range(60)
    }


def test_with_seeds_the_lowest_of_each_are_compared():
    records = [
        make_record(method=m, value=v, seed=s)
        for m, v in (("a", 80.0), ("b", 70.0))
        for s in (3, 1)
    ]
    seen = []

    def outcomes(record):
        seen.append((record.spec.method.name, record.spec.seed))
        return np.ones(4, dtype=bool)

    render(records, outcomes, [])
    assert seen == [("a", 1), ("b", 1)]


def test_ties_follow_the_images():
    records = [make_record(method=m, value=v) for m, v in (("a", 80.0), ("b", 79.0), ("c", 50.0))]
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.8
    flipped = np.zeros(400, dtype=bool)
    flipped[np.flatnonzero(base)[:4]] = flipped[np.flatnonzero(~base)[:2]] = True
    hits = {"a": base, "b": base ^ flipped, "c": base & (rng.random(400) < 0.6)}
    rows = _rows(render(records, lambda r: hits[r.spec.method.name], []), "vit_mini, W4A4, `equal`")
    assert [row[0] for row in rows] == ["1", "2 ≈", "3"]


def test_order_of_the_records_does_not_matter(records):
    expected = render(records, _nothing, [])
    for seed in range(5):
        shuffled = records.copy()
        random.Random(seed).shuffle(shuffled)
        assert render(shuffled, _nothing, []) == expected


def test_files_are_written_checked_and_report_findings(tmp_path, records):
    store = Store(tmp_path)
    for record in records:
        store.write(*_proven(record))
    path = write_leaderboard(tmp_path)
    assert make_leaderboard(tmp_path).stale() == []
    first = path.read_bytes()
    assert write_leaderboard(tmp_path).read_bytes() == first
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert sorted(table["run_id"]) == sorted(record.run_id for record in records)
    assert table.shape == to_frame(records).shape
    store.write(replace(records[1], metrics={"top1": 61.0, "top5": 99.0}), np.zeros(4, dtype=bool))
    broken = store.path(records[2])
    broken.write_text(broken.read_text()[:50])
    assert {p.name for p in make_leaderboard(tmp_path).stale()} == {
        "leaderboard.md",
        "leaderboard.csv",
    }
    findings = make_leaderboard(tmp_path).files["leaderboard.md"].split("## Findings")[1]
    assert (
        "conflict-1.json" in findings and broken.name in findings and str(tmp_path) not in findings
    )


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="holds no records"):
        write_leaderboard(tmp_path)


CHECKED_IN = [
    ROOT / "results",
    *sorted(path.parent for path in ROOT.glob("results/*/leaderboard.md")),
]


@pytest.mark.parametrize("folder", CHECKED_IN, ids=lambda path: path.name)
def test_a_checked_in_leaderboard_is_what_its_records_give(folder):
    made = make_leaderboard(folder)
    assert made.stale() == [] and made.findings == () and made.changed_numbers() == []
    found = {record.run_id for record in Store(folder).records()}
    assert found == {path.stem for path in folder.glob("runs/*/*/*.json")}


def test_results_in_a_folder_of_the_results_stay_there(tmp_path):
    outer, inner = make_record(method="outer"), make_record(method="inner", variant="x")
    Store(tmp_path).write(outer)
    Store(tmp_path / "ablation").write(inner)
    for folder, record in ((tmp_path, outer), (tmp_path / "ablation", inner)):
        assert Store(folder).records() == [record]
        write_leaderboard(folder)
    assert all(make_leaderboard(f).stale() == [] for f in (tmp_path, tmp_path / "ablation"))
    assert "inner" not in (tmp_path / "leaderboard.md").read_text()


def test_no_torch_is_imported():
    program = (
        "import sys; from vit_ptq_bench.bench.cli import main; "
        f"assert main(['leaderboard', '--check', '--results', {str(ROOT / 'results')!r}]) == 0; "
        "sys.exit(any(n in sys.modules for n in ('torch', 'timm', 'mmengine')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_mcnemar_equals_the_binomial_sum():
    rng = np.random.default_rng(1)
    first, second = rng.random(200) < 0.7, rng.random(200) < 0.6
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    expected = min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5))
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, first) == 1.0


def test_compare_and_show(tmp_path):
    store = Store(tmp_path)
    a, b = make_record(method="a", value=75.0), make_record(method="b", value=50.0)
    store.write(a, np.array([1, 1, 1, 0], dtype=bool))
    store.write(b, np.array([1, 0, 0, 1], dtype=bool))
    text = compare(a.run_id, b.run_id, tmp_path)
    assert "both right 1, only A 2, only B 1, neither 0" in text
    assert "A - B = +25.00 points" in text
    assert "p = 1" in text
    shown = show(a.run_id, tmp_path)
    assert "75.00 %" in shown and a.run_id in shown and "a CPU" in shown
    store.path(b).with_suffix(".npz").unlink()
    with pytest.raises(BenchError, match="--overwrite missing"):
        compare(a.run_id, b.run_id, tmp_path)
    other = make_record(method="c", limit=3)
    store.write(other, np.ones(3, dtype=bool))
    with pytest.raises(BenchError, match="different images"):
        compare(a.run_id, other.run_id, tmp_path)
    variant = make_record(method="a", variant="+x", parameters={"k": 2})
    store.write(variant, np.ones(4, dtype=bool))
    text = compare(a.run_id, variant.run_id, tmp_path)
    assert "vit_mini a W4A4 equal: 75.00 %" in text
    assert "vit_mini a +x W4A4 equal: 100.00 %" in text
    assert "a +x version 1" in show(variant.run_id, tmp_path)
    twin = make_record(method="a", variant="+x", parameters={"k": 3})
    store.write(twin, np.ones(4, dtype=bool))
    assert "vit_mini a +x (k=3) W4A4" in compare(variant.run_id, twin.run_id, tmp_path)
    failed = make_record(method="d", status="failed")
    store.write(failed)
    assert "it broke" in show(failed.run_id, tmp_path)


def test_many_records_are_fast():
    records = [
        make_record(method=f"m{m}", model=f"v{v}", seed=s, bits=b, value=50.0 + m)
        for m in range(20) for v in range(5) for s in range(7) for b in ("W4A4", "W3A3", "W6A6")
    ]  # fmt: skip
    began = time.monotonic()
    render(records, _nothing, [])
    assert time.monotonic() - began < 30


def test_a_task_without_a_secondary_metric_keeps_its_columns_in_place() -> None:
    """Boxes alone have no mask AP: its cell stays empty, and nothing moves under another head."""
    spec_of = make_record(method="minmax")
    record = replace(
        spec_of,
        primary_metric="box_ap",
        metric_titles=(("mask_ap", "mask AP"), ("box_ap50", "box AP50"), ("box_ap75", "box AP75")),
        metrics={"box_ap": 40.0, "box_ap50": 61.0, "box_ap75": 22.0},
        intervals={"box_ap": [39.0, 41.0]},
        standard_errors={"box_ap": 0.5},
    )
    text = render([record], lambda _: None, [])
    lines = [line for line in text.splitlines() if "box_ap %" in line or "| minmax" in line]
    head, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[-2:])
    cells = dict(zip(head, row, strict=True))
    assert (cells["mask AP %"], cells["box AP50 %"], cells["box AP75 %"]) == ("", "61.0", "22.0")
    assert (cells["calibration s"], cells["memory MB"]) == ("1.2", "512")
