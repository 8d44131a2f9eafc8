"""Where settings come from."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.settings import Config, convert


@dataclass(frozen=True)
class Options:
    data: Path | None = None
    limit: int | None = None
    batch_size: int = 64
    flat: bool = False


def write(folder: Path, text: str) -> Path:
    path = folder / "bench.toml"
    path.write_text(text)
    return path


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.read(write(tmp_path, '[tasks.imagenet]\ndata = "pictures"\nbatch_size = 3\n'))
    monkeypatch.setenv("BENCH_IMAGENET_DATA", "/from/environment")
    monkeypatch.setenv("BENCH_IMAGENET_LIMIT", "7")
    monkeypatch.setenv("BENCH_IMAGENET_FLAT", "true")
    found = config.task_options("imagenet", Options, {"batch_size": 5, "limit": None})
    assert found == Options(tmp_path / "pictures", 7, 5, True)
    alone = Config().task_options("imagenet", Options, {}, {"batch_size": 9})
    assert alone == Options(Path("/from/environment"), 7, 9, True)
    assert Config().task_options("digits", Options, {}) == Options()


def test_config_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config.read(None).setting("device", "cpu") == "cpu"
    write(tmp_path, '[run]\ndevice = "cuda:1"\ntimeout = 60\n')
    assert Config.read(None).setting("device", "cpu") == "cuda:1"
    assert Config.read(None).setting("timeout", None) == 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[task.imagenet]\ndata = "x"\n',
            r"bench\.toml:1: task: unknown key; did you mean 'tasks'",
        ),
        (
            '[run]\ndevise = "x"\n',
            r"bench\.toml:2: run\.devise: unknown key; did you mean 'device'",
        ),
        ("[run]\n\nworkers = 1.5\n", r"bench\.toml:3: run\.workers: expected a whole number"),
        ('[tasks.t]\ndatas = "x"\n', r"bench\.toml:2: tasks\.t\.datas: unknown key; did you mean"),
        ('[tasks.t]\nlimit = "x"\n', r"bench\.toml:2: tasks\.t\.limit: expected int, not 'x'"),
    ],
)
def test_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        config = Config.read(write(tmp_path, text))
        config.setting("workers", 1)
        config.task_options("t", Options, {})


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_T_LIMIT", "many")
    with pytest.raises(BenchError, match="BENCH_T_LIMIT: expected int, not 'many'"):
        Config().task_options("t", Options, {})
    monkeypatch.delenv("BENCH_T_LIMIT")
    with pytest.raises(BenchError, match="unknown option 'dta' of task t; did you mean 'data'"):
        Config().task_options("t", Options, {}, {"dta": "x"})


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot read it"):
        Config.read(tmp_path / "no.toml")


def test_convert_refuses_a_truth_value_as_number() -> None:
    with pytest.raises(BenchError, match="expected int"):
        convert(True, int, "x")
