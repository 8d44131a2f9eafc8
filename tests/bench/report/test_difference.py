"""Two folders of results, and two revisions, held against each other."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from tests.bench.samples import make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.difference import compare_folders, difference_text


def right(share, n=1000, seed=0):
    """Outcomes of which so many percent are right, at places that the seed decides."""
    order = np.random.default_rng(seed).permutation(n)
    return order < round(n * share / 100)


def write(folder, share, seed=0, **what):
    outcomes = right(share, seed=seed)
    record = replace(make_record(value=100 * float(outcomes.mean()), **what), n=len(outcomes))
    Store(folder).write(record, outcomes)
    return record


@pytest.fixture
def folders(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for share, method in (
        (70, "risen"),
        (70, "fallen"),
        (70, "noisy"),
        (70, "equal"),
        (70, "gone"),
    ):
        write(before, share, method=method)
    for share, method, seed in (
        (80, "risen", 0),
        (60, "fallen", 0),
        (70.2, "noisy", 1),
        (70, "equal", 0),
    ):
        write(after, share, method=method, seed=seed, version=2 if method == "risen" else 1)
    write(after, 50, method="born")
    return before, after


def test_each_row_is_better_worse_within_noise_the_same_gone_or_new(folders):
    changes = {change.label: change for change in compare_folders(*folders)}
    assert {label: change.verdict for label, change in changes.items()} == {
        "risen": "better",
        "fallen": "worse",
        "noisy": "within noise",
        "equal": "same",
        "gone": "gone",
        "born": "new",
    }
    assert changes["risen"].versions == (1, 2)
    assert (changes["gone"].before, changes["gone"].after) == (70.0, None)
    assert changes["noisy"].p > 0.05 > changes["risen"].p


def test_the_text_tells_what_changed_and_counts_the_rest(folders):
    text = difference_text(compare_folders(*folders))
    assert text.startswith("1 better, 1 worse, 1 gone, 1 new, 1 within noise, 1 same\n")
    assert "better  risen (v1, v2)  vit_mini W4A4 equal  70.00     80.00" in text
    assert "noisy" not in text and "equal " in text
    assert max(map(len, text.splitlines())) <= 110
    assert difference_text(compare_folders(folders[0], folders[0])) == "5 same"


def test_other_data_are_gone_and_new_and_never_better(tmp_path):
    write(tmp_path / "before", 70, method="a", limit=None)
    write(tmp_path / "after", 90, method="a", limit=1000)
    verdicts = [one.verdict for one in compare_folders(tmp_path / "before", tmp_path / "after")]
    assert sorted(verdicts) == ["gone", "new"]


def test_what_cannot_be_tested_is_said(tmp_path):
    for name, value in (("before", 70.0), ("after", 80.0)):
        Store(tmp_path / name).write(make_record(method="a", value=value))
    (change,) = compare_folders(tmp_path / "before", tmp_path / "after")
    assert change.verdict == "not tested"


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


def test_revisions_are_compared_from_the_command_line(tmp_path, capsys):
    repository, results = tmp_path / "here", tmp_path / "here" / "results"
    write(results, 70, method="a")
    git(tmp_path, "init", "-q", "here")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "before")
    write(results, 90, method="b")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "after")
    assert main(["compare", "HEAD~1", "HEAD", "--results", str(results)]) == 0
    assert capsys.readouterr().out.startswith("1 new, 1 same\n")
    assert (
        main(["compare", "HEAD~1:results", str(results), "--results", str(results), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert {one["label"]: one["verdict"] for one in found} == {"a": "same", "b": "new"}
    assert main(["compare", "HEAD~1:nowhere", "HEAD", "--results", str(results)]) == 2
    assert "has no folder nowhere" in capsys.readouterr().err
    assert main(["compare", "nosuch", "HEAD", "--results", str(results)]) == 2
    assert "begins with 'nosuch'" in capsys.readouterr().err


def test_two_runs_as_json(tmp_path, capsys):
    first, second = (write(tmp_path, share, method=name) for share, name in ((70, "a"), (60, "b")))
    command = ["compare", first.run_id, second.run_id, "--results", str(tmp_path), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["difference"] == pytest.approx(10.0)
    assert [run["right"] for run in found["runs"]] == [70.0, 60.0]
    assert (found["both"], found["only_first"], found["only_second"]) == (600, 100, 0)
