"""Factorials in suites: what they expand to, and what is refused before any work."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.toys import run, write_suite
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.plan import Run, build_plan
from vit_ptq_bench.bench.planning.suite import find_suite, read_suite
from vit_ptq_bench.bench.records.combination import NAME, Level, combination_label, levels_of
from vit_ptq_bench.tasks.api.options import TaskOptions

MINE = """\
task = "fashion"
models = ["vit_mini"]
methods = ["rose", "minmax"]
bits = ["W4A4"]

[parameters.rose]
ridge = 1.0

[factorial.rose.grid]
uniform = { attention = "uniform" }
codebook = {}

[factorial.rose.front]
none = {}

[factorial.rose.front.rotated]
transforms = ["rotate-heads"]
folds = 3
"""


def plan(folder: Path, text: str) -> list[Run]:
    path = folder / "mine.toml"
    path.write_text(text)
    return build_plan(read_suite(path), TaskOptions())


def test_a_method_runs_once_per_combination_instead_of_once(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    assert [run.title for run in runs] == [
        "fp32",
        "rose grid=uniform front=none",
        "rose grid=uniform +front=rotated",
        "rose +grid=codebook front=none",
        "rose +grid=codebook +front=rotated",
        "minmax",
    ]
    specs = [run.spec.method for run in runs[1:5]]
    assert [spec.parameters["attention"] for spec in specs] == ["uniform"] * 2 + [
        "codebook-float"
    ] * 2
    assert [spec.parameters["folds"] for spec in specs] == [4, 3, 4, 3]
    assert [spec.transforms for spec in specs] == [(), ("rotate-heads",)] * 2
    assert {spec.parameters["ridge"] for spec in specs} == {1.0}


def test_a_combination_is_the_run_that_a_variant_of_its_settings_is(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    variant = MINE.split("[factorial")[0] + '[variants.rose.x]\nattention = "uniform"\n'
    (same,) = [run for run in plan(tmp_path, variant) if run.variant == "x"]
    assert same.run_id == runs[1].run_id
    assert "grid" not in str(runs[1].spec)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("factorial.rose.grid", "factorial.rosee.grid", 9,
         "factorial.rosee: must have 2 to 8 factors, not 1: write"),
        ("methods = [\"rose\", ", "methods = [", 9, "factorial.rose: the suite runs no method 'rose'"),
        ("{ attention =", "{ attenion =", 10, "factorial.rose.grid.uniform.attenion: rose has no parameter "
         "'attenion'; did you mean 'attention'"),
        ('"uniform" }', '"unifrom" }', 10, "factorial.rose.grid.uniform.attention: rose.attention must be"),
        ('["rotate-heads"]', '["rotate-hats"]', 17, "factorial.rose.front.rotated.transforms: "),
        ("codebook = {}\n", "", 9,
         "factorial.rose.grid: must have two levels, the one without the part first, not 1"),
        ("codebook = {}", "codebook = {}\nlog2 = { attention = 'log-sqrt2' }", 9,
         "factorial.rose.grid: must have two levels, the one without the part first, not 3"),
        ("folds = 3", 'attention = "log"', 18,
         "factorial.rose.front.rotated.attention: factor 'grid' sets it too"),
        ("codebook = {}", 'codebook = { attention = "uniform" }', 9,
         "factorial.rose: '+grid=codebook front=none' has the same settings as 'grid=uniform front=none'"),
        ("codebook = {}", '"Codebook=" = {}', 11, "factorial.rose.grid.Codebook=: cannot name a level"),
        ("rose.grid", 'rose."a b"', 9, "factorial.rose.a b: cannot name a factor"),
        ("codebook = {}", "codebook = 3", 11, "factorial.rose.grid.codebook: expected a table, not 3"),
        ("[factorial.rose.grid]", "[variants.rose.x]\n[factorial.rose.grid]", 10,
         "factorial.rose: the method has variants too; it can have one of both"),
        ("[factorial.rose.grid]", "".join(f"[factorial.rose.f{i}]\na = {{}}\nb = {{}}\n" for i in range(7))
         + "[factorial.rose.grid]", 9, "factorial.rose: must have 2 to 8 factors, not 9: write"),
        ("[parameters.rose]", "[factorial]\nrose = 3\n[parameters.rose]", 7, "factorial.rose: expected a"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    text = MINE.replace(old, new, 1)
    if "rose = 3" in new:
        text = text.split("[factorial.rose.grid]")[0]
    with pytest.raises(BenchError) as caught:
        plan(tmp_path, text)
    found = str(caught.value)
    assert f"mine.toml:{line}: {message}" in found


def test_a_factorial_of_a_method_that_is_left_out_is_no_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = {
        f"factorial.toy-scarce.{name}": f"less = {{ {key} = 1 }}\nmore = {{ {key} = 2 }}"
        for name, key in (("batch", "batch_size"), ("room", "fits"))
    }
    write_suite(folder, '["toy-scarce", "toy-plain"]', **factors)
    assert run("--dry-run", "--methods", "toy-plain") == 0
    assert "2 of 2 runs would run" in capsys.readouterr().out
    assert run("--dry-run") == 0
    out = capsys.readouterr().out
    assert "6 of 6 runs would run" in out and "toy-scarce +batch=more room=less" in out


names = st.from_regex(NAME, fullmatch=True)


@settings(deadline=None)
@given(st.lists(st.builds(Level, names, names, st.booleans()), min_size=1, max_size=8))
def test_labels_read_back(levels: list[Level]) -> None:
    levels = list({level.factor: level for level in levels}.values())
    assert levels_of(combination_label(levels)) == tuple(levels)


@pytest.mark.parametrize(
    "label", [None, "", "base", "+obwr", "a=b a=c", "a=b c", "a=b  c=d", "a=B", "a=b=c", " a=b"]
)
def test_what_is_no_combination_is_none(label: str | None) -> None:
    assert levels_of(label) is None


@pytest.mark.parametrize("name", ["parts", "parts-imagenet"])
def test_the_parts_of_rose_are_32_combinations_up_to_its_defaults(name: str) -> None:
    suite = read_suite(find_suite(name))
    assert suite.bits == ("W4A4", "W3A3") and suite.seeds == (0,)
    assert suite.calibration_images == 32
    if name == "parts-imagenet":
        assert suite.factorial == read_suite(find_suite("parts")).factorial
        return
    runs = [run for run in build_plan(suite, TaskOptions()) if run.reference is not None]
    assert len(runs) == len({run.run_id for run in runs}) == 2 * 2 * 32
    found = [levels_of(run.variant) for run in runs]
    corners = [tuple(level.added for level in levels) for levels in found if levels]
    assert sorted(corners) == sorted([*product((False, True), repeat=5)] * 4)
    (plain,) = {
        run.run_id
        for run in build_plan(read_suite(find_suite("bundled")), TaskOptions())
        if (run.spec.method.name, run.spec.model.name, run.spec.bits, run.spec.seed)
        == ("rose", "vit_mini", "W4A4", 0)
        and run.spec.protocol == "equal"
    }
    label = "+start=searched +transform=all +grid=codebook +compensation=resolve correction=none"
    assert plain in {run.run_id for run in runs if run.variant == label}
