"""Suites: what is read, and what is said about a wrong one."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.settings import resolve_suites
from vit_ptq_bench.bench.planning.suite import find_suite, read_suite, suite_files, with_included
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.tasks.storage.identity import file_id
from vit_ptq_bench.tasks.storage.model_cards import weights_path

GOOD = """\
description = "a sweep"
task = "fashion"
models = ["vit_mini"]
methods = ["minmax", "ptq4vit"]
bits = ["W4A8", "W4A32"]
protocols = ["equal", "authors"]
seeds = [0, 1]
calibration_images = 16
limit = 100

[parameters.ptq4vit]
rounds = 2

[variants.ptq4vit.short]
rounds = 1

[variants.ptq4vit."+long.v2"]
rounds = 4

[task_options]
batch_size = 8
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_every_key_arrives(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, GOOD))
    assert suite.name == "mine"
    assert suite.description == "a sweep"
    assert (suite.task, suite.models) == ("fashion", ("vit_mini",))
    assert suite.methods == ("minmax", "ptq4vit")
    assert suite.bits == ("W4A8", "W4A32")
    assert suite.protocols == ("equal", "authors")
    assert suite.seeds == (0, 1)
    assert (suite.calibration_images, suite.limit) == (16, 100)
    assert suite.parameters == {"ptq4vit": {"rounds": 2}}
    assert suite.variants == {"ptq4vit": {"short": {"rounds": 1}, "+long.v2": {"rounds": 4}}}
    assert suite.task_options == {"batch_size": 8}


def test_defaults(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, 'task = "fashion"\nmodels = "vit_mini"\n'))
    assert suite.models == ("vit_mini",)
    assert suite.methods == ("*",)
    assert suite.protocols == ("equal",)
    assert suite.seeds == (0,)
    assert suite.calibration_images is None


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('task = "fashion"', "task = fashion", 2, ["not valid TOML", "task = fashion"]),
        ("seeds = [0, 1]", "seeds = [0, 1", 8, ["not valid TOML"]),
        ("bits =", "bit =", 5, ["bit", "unknown key", "did you mean 'bits'?"]),
        ('"W4A32"', '"W4A9"', 5, ["bits", "W4A9", "activation bits must be 2 to 8"]),
        ('"W4A32"', '"W1A4"', 5, ["W1A4", "weight bits must be 2 to 8"]),
        ('"W4A32"', '"4/8"', 5, ["4/8", "not a bit width"]),
        ('"equal"', '"eqal"', 6, ["unknown protocol 'eqal'", "did you mean 'equal'?"]),
        ("[0, 1]", '["0"]', 7, ["seeds", "expected a whole number", "a string"]),
        ("[0, 1]", "[-1]", 7, ["seeds", "at least 0"]),
        ("[0, 1]", "[3, 3]", 7, ["seeds", "twice"]),
        ("[0, 1]", "[]", 7, ["seeds", "empty"]),
        ("calibration_images = 16", "calibration_images = true", 8, ["calibration_images", "true"]),
        ("calibration_images = 16", "calibration_images = 0", 8, ["at least 1"]),
        ("limit = 100", "limit = 1.5", 9, ["limit", "1.5 (a number)"]),
        (
            "[parameters.ptq4vit]\nrounds = 2",
            "[parameters]\nptq4vit = 2",
            12,
            ["parameters.ptq4vit"],
        ),
        ("[variants.ptq", "[variant.ptq", 14, ["variant", "unknown key", "'variants'?"]),
        ('"+long.v2"', '"Long"', 17, ["variants.ptq4vit.Long", "'Long' is not a label"]),
        ('"+long.v2"', '"-x"', 17, ["variants.ptq4vit.-x", "'-x' is not a label"]),
        ('"+long.v2"', "'a b'", 17, ["variants.ptq4vit.a b", "'a b' is not a label"]),
        ("4vit.short]", "4vit]", 15, ["variants.ptq4vit.rounds", "expected a table, not 1"]),
        ("[variants.ptq4vit.short]", "[variants.mgrq]\n[other]", 15, ["other", "unknown key"]),
        ("[task_options]", "[variants.mgrq]", 21, ["variants.mgrq.batch_size", "expected a table"]),
        ("[task_options]\nbatch_size = 8", "[variants.mgrq]", 20, ["variants.mgrq", "no variant"]),
    ],
)
def test_errors_name_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(BenchError) as caught:
        read_suite(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("key", ["task", "models"])
def test_missing_key(tmp_path: Path, key: str) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith(key)]
    with pytest.raises(BenchError, match=f"{key}.*missing"):
        read_suite(write(tmp_path, "\n".join(lines)))


def test_a_value_in_a_list_of_several_lines_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 'task = "t"\nmodels = ["m"]\nbits = [\n    "W4A4",\n    "W9A9",\n]\n')
    with pytest.raises(BenchError, match=r"mine\.toml:5: bits"):
        read_suite(path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'task = "fashion"\nname = "\xff"\n')
    with pytest.raises(BenchError, match=r"mine\.toml:2: not UTF-8"):
        read_suite(path)


def test_a_name_that_cannot_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r":1: name: '\.\./x' cannot name a folder"):
        read_suite(write(tmp_path, 'name = "../x"\n' + GOOD))


def test_included_suites_run_along_and_include_no_others(tmp_path: Path) -> None:
    path = write(tmp_path, 'include = ["quick-detection"]\n' + GOOD)
    first, second = with_included(read_suite(path))
    assert (first.name, second.name, second.task) == ("mine", "quick-detection", "scenes")
    other = write(tmp_path, f'include = ["{path}"]\n' + GOOD).rename(tmp_path / "outer.toml")
    path.write_text('include = ["quick-detection"]\n' + GOOD)
    with pytest.raises(BenchError, match=r"outer\.toml:1: include.*includes others itself"):
        with_included(read_suite(other))
    path.write_text('include = ["quik"]\n' + GOOD)
    with pytest.raises(BenchError, match=r":1: include.*unknown suite 'quik'"):
        with_included(read_suite(path))


def test_bundled_suites_are_valid() -> None:
    suites = {name: read_suite(path) for name, path in suite_files().items()}
    assert {"quick", "bundled", "imagenet"} <= set(suites)
    assert all(suite.description for suite in suites.values())
    assert all(with_included(suite) for suite in suites.values())


def test_quick_has_the_same_settings_at_all_widths() -> None:
    suites = {name: read_suite(path) for name, path in suite_files().items()}
    quick, widths = suites["quick"], suites["quick-widths"]
    assert quick.bits == ("W4A4",) and set(widths.bits) == {"W6A6", "W3A3"}
    assert {"mgrq", "ptq4vit", "apq-vit", "repq-vit", "lrquant", "rose"} <= set(widths.methods)
    for name in widths.methods:
        assert widths.parameters.get(name) == quick.parameters.get(name)
    for key in ("task", "models", "protocols", "seeds", "limit", "calibration_images"):
        assert getattr(widths, key) == getattr(quick, key)


def test_find_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    assert find_suite(str(path)) == path
    assert find_suite("quick") == suite_files()["quick"]
    monkeypatch.chdir(tmp_path)
    assert find_suite("mine.toml") == Path("mine.toml")
    with pytest.raises(BenchError, match="unknown suite 'quik'; did you mean 'quick'"):
        find_suite("quik")
    with pytest.raises(BenchError, match="no suite file other.toml"):
        find_suite("other.toml")


OWN = """\
task = "fashion"
methods = ["minmax"]
bits = ["W6A6"]
limit = 20
calibration_images = 2

[models.vit_mini]
checkpoint = "first.safetensors"

[models.deit_mini]
checkpoint = "second.safetensors"

[models.swin_mini]
"""


def test_each_model_of_a_suite_can_have_weights_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line: the other way round than bundled, halved, and their own."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("first", "vit_mini"), ("second", "deit_mini")):
        state = load_file(weights_path(source))
        state["norm.weight"] = state["norm.weight"] / 2
        save_file(state, tmp_path / f"{name}.safetensors")
    write(tmp_path, OWN)
    assert main(["run", "mine.toml", "--output", "out"]) == 0
    found = {
        record.spec.model.name: record.spec.model.weights for record in Store(Path("out")).records()
    }
    assert found == {
        "vit_mini": file_id(tmp_path / "first.safetensors"),
        "deit_mini": file_id(tmp_path / "second.safetensors"),
        "swin_mini": file_id(weights_path("swin_mini")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.a]\nmodel_args = 3\n", r"mine\.toml:\d+: .*expected a table"),
        ("[models.a.model_args]\nx = [[1]]\n", r"mine\.toml:\d+: .*expected a number, text"),
        ("[models.a.model_args]\nx = [1.5]\n", r"mine\.toml:\d+: .*expected a number, text"),
        ("[models.vit_mini]\ncheckpoints = 'a'\n", r"mine\.toml:\d+: .*unknown key 'checkpoints'"),
        ("[models.vit_mini]\ncheckpoint = 3\n", r"mine\.toml:\d+: .*expected a string"),
        ("[models]\nvit_mini = 'a'\n", r"mine\.toml:\d+: .*expected a table"),
        ("[models]\n", r"mine\.toml:\d+: .*there is no model; write \[models\.NAME\]"),
    ],
)
def test_tables_of_models_that_say_nothing_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        read_suite(write(tmp_path, f'task = "fashion"\n{text}'))


def test_two_suites_do_not_quarrel_about_weights(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, OWN))
    other = replace(suite, name="other", checkpoints={"vit_mini": Path("third")})
    with pytest.raises(BenchError, match="another suite has other weights for it"):
        resolve_suites([suite, other], {})
    options = resolve_suites([suite, replace(suite, checkpoints={"a": Path("b")})], {}).tasks[
        "fashion"
    ]
    assert options.weights_of("a") == Path("b") and options.weights_of("swin_mini") is None
    assert options.weights_of("vit_mini") == Path("first.safetensors")
