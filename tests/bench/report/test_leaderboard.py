"""The files of a leaderboard are a pure function of the records beside them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.bench.report.test_tables import RECORDS
from tests.bench.samples import make_record
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.frame import SOURCE, to_frame
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard, write_leaderboard

ROOT = Path(__file__).parents[3]


def _proven(record):
    """A record of 100 images with outcomes that bear it out."""
    if not record.ok:
        return record, None
    return replace(record, n=100), np.arange(100) < record.metrics["top1"]


def test_files_are_written_checked_and_report_findings(tmp_path):
    store, records = Store(tmp_path), RECORDS
    for record in records:
        store.write(*_proven(record))
    path = write_leaderboard(tmp_path)
    assert make_leaderboard(tmp_path).stale() == []
    first = path.read_bytes()
    assert write_leaderboard(tmp_path).read_bytes() == first
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert sorted(table["run_id"]) == sorted(record.run_id for record in records)
    rows, columns = to_frame(records).drop(columns=SOURCE).shape
    assert table.shape == (rows, columns + 4)  # and of its row the mean, its interval, its classes
    store.write(replace(records[1], metrics={"top1": 61.0, "top5": 99.0}), np.zeros(4, dtype=bool))
    broken = store.path(records[2])
    broken.write_text(broken.read_text()[:50])
    assert {p.name for p in make_leaderboard(tmp_path).stale()} == {
        "leaderboard.md",
        "leaderboard.csv",
        "index.html",
    }
    findings = make_leaderboard(tmp_path).files["leaderboard.md"].split("## Findings")[1]
    assert (
        "conflict-1.json" in findings and broken.name in findings and str(tmp_path) not in findings
    )


def test_a_missing_folder_is_an_error_and_an_empty_one_a_finding(tmp_path):
    with pytest.raises(BenchError, match="there is no folder"):
        write_leaderboard(tmp_path / "missing")
    text = write_leaderboard(tmp_path).read_text()
    assert "There are no records; `bench run SUITE --output FOLDER` makes some." in text
    assert make_leaderboard(tmp_path).findings == (
        "no records (looked for runs/<task>/<model>/<run id>.json)",
    )


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


def test_results_point_to_those_of_a_real_model_beside_them(tmp_path):
    Store(tmp_path).write(make_record(method="outer"))
    assert "real model" not in write_leaderboard(tmp_path).read_text()
    Store(tmp_path / "imagenet-sample").write(make_record(method="inner"))
    first = write_leaderboard(tmp_path).read_text().split("\n## ")[0]
    assert "[imagenet-sample](imagenet-sample/leaderboard.md), to be read first" in first
    page = (tmp_path / "index.html").read_text().split("</header>")[0]
    assert '<a href="imagenet-sample/index.html">' in page


def test_no_torch_is_imported():
    program = (
        "import sys; from vit_ptq_bench.bench.cli import main; "
        f"assert main(['leaderboard', '--check', '--results', {str(ROOT / 'results')!r}]) == 0; "
        "sys.exit(any(n in sys.modules for n in ('torch', 'timm', 'mmengine')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
