"""The tables as LaTeX, JSON and CSV: what is in them is shown as it is, whatever it is called."""

import csv
import io
import json
import re

import pytest

from tests.bench.report.test_tables import RECORDS, hits, nothing
from tests.bench.samples import make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.latex import escaped, render_latex
from vit_ptq_bench.bench.report.leaderboard import harmless, to_csv
from vit_ptq_bench.bench.report.machine import leaderboard_json
from vit_ptq_bench.bench.report.tables import tables

HOSTILE = "a|b\n<script>alert(1)</script> =cmd() \\input{x} 5% $x$ _&#~^"


def environments(text):
    return re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)


def test_latex_has_one_table_per_task_and_protocol_with_as_many_cells_in_each_row():
    text = render_latex(tables(RECORDS, hits))
    found = environments(text)
    assert len(found) == 2
    for table in found:
        columns = len(re.search(r"tabular\}\{@\{\}l(r+)@\{\}\}", table)[1])
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        body = [row for row in rows if "multicolumn" not in row]
        assert {row.count("&") for row in body} == {columns}
        assert table.count(r"\toprule") == table.count(r"\bottomrule") == 1
    (equal,) = [table for table in found if "protocol equal" in table]
    assert r"\multicolumn{2}{c}{vit\_mini}" in equal
    assert r"full precision & 95.0 & 95.0 \\" in equal


def test_latex_sets_in_bold_what_no_test_separates_from_the_best():
    text = render_latex(tables(RECORDS, hits))
    bold = re.findall(r"^(\S+) & .*\\textbf\{(\S+)\}", text, flags=re.MULTILINE)
    assert ("repq", "90.0") in bold and ("near", "89.9") in bold
    assert not any(name == "minmax" and value == "60.0" for name, value in bold)
    (seeded,) = re.findall(
        r"^seeded & -- & 74\.0\\,\$\\pm\$\\,4\.0 \{\\tiny \[(\S+), (\S+)\]\} ", text, re.M
    )
    assert (
        float(seeded[0]) < 71.4 and float(seeded[1]) > 76.5
    )  # Wilson's of 740 of 1000: [71.2, 76.6]
    assert r"\textbf" not in render_latex(tables(RECORDS, nothing)).replace("Bold", "")


def test_latex_of_nothing_says_so():
    assert "% There are no results." in render_latex([])
    failures = [make_record(status="failed")]
    assert "% There are no results." in render_latex(tables(failures, nothing))


def test_hostile_names_are_shown_as_they_are():
    records = [make_record(variant=HOSTILE, model=HOSTILE, value=70.0)]
    found = tables(records, nothing)
    latex = render_latex(found)
    assert r"\input{x}" not in latex and r"\textbackslash{}input\{x\}" in latex
    assert r"\textless{}script\textgreater{}" in latex
    data = json.loads(json.dumps(leaderboard_json(records, found, [HOSTILE])))
    assert data["findings"] == [HOSTILE]
    assert data["rows"][0]["label"] == f"minmax {HOSTILE}"
    (row,) = csv.DictReader(io.StringIO(to_csv(records)))
    assert row["variant"] == HOSTILE


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\tx", "\rx", "\n=1"])
def test_a_spreadsheet_computes_nothing(text):
    assert harmless(text) == f"'{text}".replace("\r", " ")
    (row,) = csv.DictReader(io.StringIO(to_csv([make_record(variant=text)])))
    assert row["variant"].startswith("'")
    assert harmless(-1.5) == -1.5 and harmless("minmax") == "minmax"


def test_a_name_in_brackets_belongs_to_its_own_row_in_latex():
    r"""Behind `\\` a bracket is its length and a star its form."""
    assert escaped("[9cm] *x") == "{[}9cm{]} {*}x"


def test_csv_tells_of_each_run_the_mean_of_its_row_with_the_interval():
    table = csv.DictReader(io.StringIO(to_csv(RECORDS, tables(RECORDS, hits))))
    rows = [row for row in table if row["method"] == "seeded"]
    assert [float(row["value"]) for row in rows] == [70.0, 74.0, 78.0]
    assert {row["mean"] for row in rows} == {"74.0"}
    (low,), (high,) = ({float(row[name]) for row in rows} for name in ("mean_low", "mean_high"))
    assert low < 71.4 and high > 76.5


def test_escaped_is_one_line():
    assert escaped("a\nb") == "a b"
    assert escaped("50 %") == r"50 \%"


def test_csv_tells_commit_version_and_family():
    record = make_record(family="calibration")
    record.environment.update(git_commit="abc", git_dirty=True, vit_ptq_bench="1.2")
    (row,) = csv.DictReader(io.StringIO(to_csv([record])))
    assert (row["commit"], row["bench_version"], row["family"]) == ("abc+", "1.2", "calibration")


def test_each_form_from_the_command_line(tmp_path, capsys):
    for method, value in (("repq", 75.0), ("minmax", 50.0), ("omse", 25.0)):
        Store(tmp_path).write(make_record(method=method, value=value))
    command = ["leaderboard", "--results", str(tmp_path)]
    outputs = {}
    for form in ("markdown", "csv", "html", "latex", "json"):
        assert main([*command, "--format", form]) == 0
        outputs[form] = capsys.readouterr().out
    assert list(tmp_path.glob("*.*")) == []  # printed, not written
    assert outputs["markdown"].startswith("# Leaderboard")
    assert outputs["csv"].startswith("run_id,")
    assert outputs["html"].startswith("<!DOCTYPE html>")
    assert r"\begin{tabular}" in outputs["latex"]
    data = json.loads(outputs["json"])
    assert data["rows"][0]["label"] == "repq" and data["choices"][0]["best"] == "repq"
    assert main([*command, "--json"]) == 0
    assert capsys.readouterr().out == outputs["json"]


def test_show_and_list_as_json(tmp_path, capsys):
    record = make_record(method="repq", value=75.0)
    Store(tmp_path).write(record)
    assert main(["show", record.run_id[:6], "--results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == record.run_id
    assert main(["list", "methods", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"method": "minmax", "family": "calibration"}.items() <= next(
        one for one in data["methods"] if one["method"] == "minmax"
    ).items()
    assert {one["protocol"] for one in data["conventions"]} == {"equal", "authors"}
    assert main(["list", "suites", "--json"]) == 0
    assert "bundled" in [one["suite"] for one in json.loads(capsys.readouterr().out)["suites"]]
