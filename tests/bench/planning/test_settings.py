"""Where settings come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.bench.toys import write_suite
from vit_ptq_bench.bench.cli import make_parser
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import (
    Config,
    convert,
    environment_name,
    option,
    options_of,
    resolved,
    suite_source,
    words_source,
)
from vit_ptq_bench.bench.planning.settings import RunOptions, resolve_run, resolve_task
from vit_ptq_bench.tasks import TaskOptions


@dataclass(frozen=True)
class Options:
    data: Path | None = option(None, "the data")
    limit: int | None = option(None, "how many", at_least=1)
    batch_size: int = option(64, "at a time")
    flat: bool = option(False, "whether flat")
    kind: Literal["a", "b"] = option("a", "which")
    names: tuple[str, ...] = option((), "names")
    more: str = "no option"


def write(folder: Path, text: str) -> Path:
    path = folder / "bench.toml"
    path.write_text(text)
    return path


def found(
    config: Config,
    task: str = "imagenet",
    given: dict[str, Any] | None = None,
    suite: dict[str, Any] | None = None,
) -> Options:
    places = [config.environment(task), config.table("tasks", task)]
    return resolved(Options, [*places, suite_source(task, suite or {}), words_source(given or {})])


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.read(write(tmp_path, '[tasks.imagenet]\ndata = "pictures"\nbatch_size = 3\n'))
    monkeypatch.setenv("BENCH_IMAGENET_DATA", "/from/environment")
    monkeypatch.setenv("BENCH_IMAGENET_LIMIT", "7")
    monkeypatch.setenv("BENCH_IMAGENET_FLAT", "true")
    monkeypatch.setenv("BENCH_IMAGENET_NAMES", "a, b,a")
    here = found(config, given={"batch_size": "5", "limit": None})
    assert here == Options(tmp_path / "pictures", 7, 5, True, names=("a", "b"))
    alone = found(Config(), suite={"batch_size": 9})
    assert alone == Options(Path("/from/environment"), 7, 9, True, names=("a", "b"))
    assert found(Config(), "fashion") == Options()


def test_settings_of_a_sweep_come_from_every_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"suite": "toy.toml"}
    write_suite(folder, '["minmax"]')
    assert resolve_run(words).device == ("cpu",)
    monkeypatch.setenv("BENCH_RUN_DEVICE", "cuda:2")
    monkeypatch.setenv("BENCH_RUN_WORKERS", "3")
    assert (resolve_run(words).device, resolve_run(words).workers) == (("cuda:2",), 3)
    write(folder, '[run]\ndevice = ["cuda:0", "cuda:1"]\ntimeout = 60\noutput = "here"\n')
    options = resolve_run(words)
    assert options.device == ("cuda:0", "cuda:1") and options.workers == 3
    assert options.timeout == 60.0
    assert options.folder == Path("here")  # relative to the file, which is in this folder
    told = resolve_run(words | {"device": ["cpu"], "output": "there"})
    assert (told.device, told.folder) == (("cpu",), Path("there"))
    write(folder, "[run]\nsave_models = true\n")
    assert resolve_run(words).save_models
    given = vars(make_parser().parse_args(["run", "toy.toml", "--no-save-models"]))
    assert not resolve_run(given).save_models


def test_help_keys_and_variables_are_made_from_the_same_fields(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(folder, '["minmax"]', task='"fashion"', models='["vit_mini"]')
    with pytest.raises(SystemExit):
        make_parser().parse_args(["run", "--help"])
    text = capsys.readouterr().out
    values = {"overwrite": "always", "device": "cuda:3", "executor": "serial", "shard": "1/3"}
    for cls, table, key in ((RunOptions, "run", "run"), (TaskOptions, "tasks.fashion", "fashion")):
        for name, _, _, default in options_of(cls):
            assert f"--{name.replace('_', '-')}" in text
            value = values.get(name, "1")
            write(folder, f'[{table}]\n{name} = "{value}"\n')
            by_file = resolve_run({"suite": "toy.toml"})
            (folder / "bench.toml").unlink()
            monkeypatch.setenv(environment_name(key, name), value)
            by_variable = resolve_run({"suite": "toy.toml"})
            monkeypatch.delenv(environment_name(key, name))
            both = [o if cls is RunOptions else o.tasks["fashion"] for o in (by_file, by_variable)]
            assert getattr(both[0], name) == getattr(both[1], name) != default
    assert "BENCH_RUN_DEVICE" in text and "BENCH_IMAGENET_DATA_DIR" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[task.imagenet]\ndata = "x"\n',
            r"bench\.toml:1: task: unknown key; did you mean 'tasks'",
        ),
        (
            '[tasks.t]\ndatas = "x"\n',
            r"bench\.toml:2: tasks\.t\.datas: unknown option 'datas'; did you mean 'data'",
        ),
        ('[tasks.t]\nlimit = "x"\n', r"bench\.toml:2: tasks\.t\.limit: expected int, not 'x'"),
        ("[tasks.t]\n\nlimit = 1.5\n", r"bench\.toml:3: tasks\.t\.limit: expected int, not 1\.5"),
        ("[tasks.t]\nlimit = 0\n", r"bench\.toml:2: tasks\.t\.limit: must be at least 1, not 0"),
        ("[tasks.t]\nnames = []\n", r"bench\.toml:2: tasks\.t\.names: the list is empty"),
        ('[tasks.t]\nkind = "c"\n', r"bench\.toml:2: tasks\.t\.kind: expected a or b, not 'c'"),
    ],
)
def test_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        found(Config.read(write(tmp_path, text)), "t")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("workers", "0", "must be at least 1, not 0"),
        ("workers", "many", "expected int, not 'many'"),
        ("timeout", "-1", "must be at least 0, not -1"),
        ("timeout", "nan", "must be a finite number, not nan"),
        ("share_gb", "-1", "must be at least 0, not -1"),
        ("share_gb", "inf", "must be a finite number, not inf"),
    ],
)
def test_numbers_are_checked_wherever_they_stand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    write_suite(folder, '["minmax"]')
    words = {"suite": "toy.toml"}
    with pytest.raises(BenchError, match=f"--{name.replace('_', '-')}: {message}"):
        resolve_run(words | {name: value})
    with monkeypatch.context() as patch:
        patch.setenv(environment_name("run", name), value)
        with pytest.raises(BenchError, match=f"BENCH_RUN_{name.upper()}: {message}"):
            resolve_run(words)
    write(folder, f'[run]\n{name} = "{value}"\n')
    with pytest.raises(BenchError, match=rf"bench\.toml:2: run\.{name}: {message}"):
        resolve_run(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"slurm": ["gres=gpu:1"]}, "--slurm: .* --executor is local"),
        ({"executor": "serial", "workers": "2"}, "--workers 2: --executor serial"),
    ],
)
def test_words_that_the_executor_has_no_use_for_are_refused(
    folder: Path, words: dict[str, Any], message: str
) -> None:
    write_suite(folder, '["minmax"]')
    with pytest.raises(BenchError, match=message):
        resolve_run({"suite": "toy.toml"} | words)
    # A config file may have them, for the sweeps that use them.
    write(folder, '[run]\nslurm = ["gres=gpu:1"]\nworkers = 2\n')
    assert resolve_run({"suite": "toy.toml", "executor": "serial"}).slurm == ("gres=gpu:1",)
    assert resolve_run({"suite": "toy.toml", "executor": "serial", "workers": "1"}).workers == 1


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_T_LIMIT", "many")
    with pytest.raises(BenchError, match="BENCH_T_LIMIT: expected int, not 'many'"):
        found(Config(), "t")
    monkeypatch.delenv("BENCH_T_LIMIT")
    with pytest.raises(BenchError, match="unknown option 'dta' of task t; did you mean 'data'"):
        found(Config(), "t", suite={"dta": "x"})


def test_an_unknown_key_of_the_config_file_is_refused(folder: Path) -> None:
    write_suite(folder, '["minmax"]')
    write(folder, '[run]\ndevise = "x"\n')
    with pytest.raises(BenchError, match=r"bench\.toml:2: run\.devise: unknown option 'devise'"):
        resolve_run({"suite": "toy.toml"})


def test_options_of_a_task_outside_a_sweep(folder: Path) -> None:
    write(folder, "[tasks.fashion]\nlimit = 3\n")
    assert resolve_task("fashion", {}).limit == 3
    assert resolve_task("fashion", {"limit": "4"}).limit == 4


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot read it"):
        Config.read(tmp_path / "no.toml")


def test_convert_refuses_a_truth_value_as_number() -> None:
    with pytest.raises(BenchError, match="expected int"):
        convert(True, int, "x")
