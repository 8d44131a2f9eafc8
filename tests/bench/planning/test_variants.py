"""Variants: one method under several settings in one suite."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.bench.toys import records, run, write_suite
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.plan import Run, build_plan
from vit_ptq_bench.bench.planning.suite import find_suite, read_suite
from vit_ptq_bench.tasks.api.options import TaskOptions

SHORT = {"variants.toy-slow.short": "seconds = 0.0"}
LONG = {'variants.toy-slow."+long"': "seconds = 0.1"}
MINE = """\
task = "fashion"
models = ["vit_mini"]
methods = ["repq-vit", "mgrq", "minmax"]
bits = ["W4A4"]
seeds = [0, 1]

[parameters.mgrq]
iterations = 7

[variants.mgrq.base]
block = false

[variants.mgrq."+ebgs"]
iterations = 9
local_weight = 0.0
"""


def plan(folder: Path, text: str) -> list[Run]:
    path = folder / "mine.toml"
    path.write_text(text)
    return build_plan(read_suite(path), TaskOptions())


def ids(runs: list[Run], variant: str | None) -> list[str]:
    return [run.run_id for run in runs if run.spec.method.name == "mgrq" and run.variant == variant]


def test_a_method_runs_once_per_variant_instead_of_once(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    assert [(run.title, run.spec.seed) for run in runs] == [
        ("fp32", 0),
        *((title, seed) for seed in (0, 1) for title in ("repq-vit", "mgrq base", "mgrq +ebgs", "minmax")),
    ]  # fmt: skip
    base, ebgs = runs[2], runs[3]
    assert base.label == "vit_mini mgrq base W4A4 equal seed 0"
    settings = ("block", "iterations", "local_weight")
    assert [base.spec.method.parameters[key] for key in settings] == [False, 7, 0.3]
    assert [ebgs.spec.method.parameters[key] for key in settings] == [True, 9, 0.0]


def test_settings_decide_the_identity_and_labels_do_not(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    renamed = plan(tmp_path, MINE.replace("base", "other"))
    assert ids(runs, "base") == ids(renamed, "other")
    plain = MINE.split("[variants")[0] + "block = false\n"
    assert ids(runs, "base") == ids(plan(tmp_path, plain), None)
    assert ids(runs, "base") != ids(plan(tmp_path, MINE.replace("= 7", "= 8")), "base")
    assert "base" not in str(runs[3].spec)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("block", "blok", 11, "variants.mgrq.base.blok: mgrq has no parameter 'blok'; did you mean"),
        ("false", "1", 11, "variants.mgrq.base.block: mgrq.block must be bool; got 1"),
        ("= 9", '= "9"', 14, "variants.mgrq.+ebgs.iterations: mgrq.iterations must be int; got '9'"),
        ("mgrq.base", "mgrqq.base", 10, "variants.mgrqq: the suite runs no method 'mgrqq'; did you"),
        ("mgrq.base", "qdrop.base", 10, "variants.qdrop: the suite runs no method 'qdrop'; known:"),
        ("mgrq.base", "fp32.base", 10, "variants.fp32: the suite runs no method 'fp32'"),
        (
            "iterations = 9\nlocal_weight = 0.0",
            "block = false",
            13,
            "variants.mgrq.+ebgs: has the same settings as variant 'base'",
        ),
        (
            "block = false",
            "local_weight = 0\niterations = 9",
            14,
            "variants.mgrq.+ebgs: has the same settings as variant 'base'",
        ),
        (
            '[variants.mgrq."+ebgs"]\niterations = 9',
            'more = 3',
            13,
            "variants.mgrq.base.more: mgrq has no parameter 'more'",
        ),
        (
            '.base]\nblock = false\n\n[variants.mgrq."+ebgs"]\niterations = 9',
            "]\nfirst = {}\nsecond = { blok = 1 }\n[variants.mgrq.x]",
            12,
            "variants.mgrq.second.blok: mgrq has no parameter 'blok'",
        ),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    with pytest.raises(BenchError, match=rf"mine\.toml:{line}: {re.escape(message)}"):
        plan(tmp_path, MINE.replace(old, new, 1))


def test_the_ablation_of_mgrq_switches_one_part_at_a_time() -> None:
    suite = read_suite(find_suite("mgrq-ablation"))
    assert suite.variants == read_suite(find_suite("mgrq-ablation-imagenet")).variants
    runs = build_plan(suite, TaskOptions())
    parts = {
        "": (False, True, True, False),
        "+obwr": (True, False, False, False),
        "+ebgs": (True, True, False, False),
        "+ibls": (True, False, True, False),
        "+all": (True, True, True, False),
        "+judged": (True, True, True, True),
    }
    bases = ("repq", "closed-form")
    each = 1 + len(bases) * len(parts) * len(suite.bits) * len(suite.seeds)  # 1: full precision
    assert len(suite.seeds) == 3
    assert len(runs) == len({one.run_id for one in runs}) == len(suite.models) * each
    switches = ("block", "global_weight", "local_weight", "holdout")
    found = {}
    for one in runs:
        if one.reference is not None:
            settings = one.spec.method.parameters
            found[one.title] = (settings["start"], *(bool(settings[key]) for key in switches))
    assert found == {
        f"mgrq {base}{part}": (base, *switched)
        for base in bases
        for part, switched in parts.items()
    }


def test_methods_on_the_command_line_leave_variants_of_others_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-slow", "toy-plain"]', **SHORT, **LONG)
    assert run("--dry-run", "--methods", "toy-plain") == 0
    out = capsys.readouterr().out
    assert "2 of 2 runs would run" in out
    assert "toy-slow" not in out
    assert run("--dry-run", "--methods", "toy-slo*") == 0
    out = capsys.readouterr().out
    assert "3 of 3 runs would run" in out
    assert "  toy-slow short  " in out
    assert "  toy-slow +long  " in out


def test_a_sweep_of_variants_runs_each_once_and_shows_its_label(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-slow"]', **SHORT)
    assert run() == 0
    out = capsys.readouterr().out
    assert "start toy_a toy-slow short W4A4 equal seed 0" in out
    assert "| 1      | toy-slow short |" in out
    write_suite(folder, '["toy-slow"]', **SHORT, **LONG)
    assert run() == 0
    assert "3 runs: 2 had their record; now 1 ok" in capsys.readouterr().out
    found = {record["variant"]: record["spec"] for record in records().values()}
    assert set(found) == {None, "short", "+long"}
    assert found["+long"]["method"]["parameters"] == {"seconds": 0.1}
    assert not any("+long" in str(spec) for spec in found.values())


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the checksum of its content."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {"checksum": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}


def test_a_new_label_reaches_the_tables_without_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-slow", "toy-fail"]', **SHORT, **{"variants.toy-fail.x": ""})
    assert run() == 1
    before = records()
    write_suite(folder, '["toy-slow"]', **{"variants.toy-slow.brief": "seconds = 0.0"})
    capsys.readouterr()
    assert run("--dry-run") == 0
    assert records() == before
    assert run() == 0
    assert "2 runs: 2 had their record; now nothing to do" in capsys.readouterr().out
    relabelled = {
        name: _sealed(record | {"variant": "brief"}) if record["variant"] == "short" else record
        for name, record in before.items()
    }
    assert records() == relabelled
    table = Path("output/toy/leaderboard.md").read_text()
    assert "toy-slow brief" in table
    assert "toy-slow short" not in table
    assert "toy-fail x" in table
    write_suite(folder, '["toy-slow"]', **{"parameters.toy-slow": "seconds = 0.0"})
    assert run() == 0
    assert records() == relabelled, "a suite without labels leaves them"
