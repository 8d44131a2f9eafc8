"""The command line as such."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vit_ptq_bench
from tests.bench.samples import make_record
from tests.bench.toys import FAKES, ROOT, run, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.execution.forecast import Forecast, duration
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.records import files as output
from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS

PROTOCOLS = [["equal"], ["authors"]]
RUN, OTHER = (
    path.stem for path in sorted((ROOT / "results").glob("runs/fashion/vit_mini/*.json"))[:2]
)
LIGHT = """
import sys
import tomllib
from vit_ptq_bench.bench.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
heavy = [name for name in ("torch", "timm", "mmdet", "mmcv", "sklearn") if name in sys.modules]
sys.exit(f"{status} {heavy}" if status or heavy else 0)
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "run --help",
        "inspect --help",
        "tune --help",
        "list methods",
        "list transforms",
        "list tasks",
        "list suites",
        "list models",
        f"show {RUN}",
        f"compare {RUN} {OTHER}",
        "recommend --model vit_mini",
        "leaderboard --check",
        "run bundled --output results --dry-run",
    ],
)
def test_what_only_prints_does_not_import_torch(command: str) -> None:
    for _ in range(
        2
    ):  # the first time identities of data and the names of timm are asked for and kept
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, *command.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["run", "leaderboard", "list", "show", "compare", "evaluate"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert "usage: bench" in capsys.readouterr().out


def test_list_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "suites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[2:]} >= {"quick", "bundled", "mgrq-ablation"}


def test_list_transforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "transforms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:] if line[:1].isalpha()] == sorted(TRANSFORMS)


def test_list_methods_tells_fidelity_paper_and_both_conventions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "methods", "--plugin", str(FAKES)]) == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert ["ptq4vit", "2", "calibration"] in [line[:3] for line in lines]
    assert "official" in next(line[3] for line in lines if line[0] == "ptq4vit")
    conventions = {tuple(line[:2]): line[2:] for line in lines if line[1:2] in PROTOCOLS}
    assert conventions["minmax", "equal"] == ["32", "the common table"]
    assert conventions["minmax", "authors"] == ["32", "every weight: symmetric"]
    assert conventions["brecq", "authors"][0] == "1024"
    assert conventions["brecq", "authors"][1].startswith("query, key, attention, value: per head; ")
    assert conventions["repq-vit", "equal"] == ["32", "attention: log-sqrt2"]
    assert conventions["fp32", "equal"] == ["0", "not quantized"]
    assert conventions["toy-few", "authors"][0] == "5"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Path:
        raise ValueError("a defect, not a user error")

    monkeypatch.setattr("vit_ptq_bench.bench.planning.settings.find_suite", broken)
    with pytest.raises(ValueError, match="a defect"):
        main(["run", "quick"])


def test_unwritable_output_stops_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(folder, '["toy-plain"]')
    (folder / "file").write_text("")
    assert run("--output", "file") == 2
    assert "cannot write to the output folder file" in capsys.readouterr().err

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    assert run() == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_full_disk_in_the_middle_stops_the_sweep(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]')
    runs = Path("output/toy/runs")
    runs.parent.mkdir(parents=True)
    runs.write_text("a file where the records should go")
    assert run() == 2
    message = capsys.readouterr().err
    assert "cannot write to output/toy" in message
    assert "the finished runs are kept" in message


def some_run(method: str, model: str, **parameters: object) -> Run:
    spec = make_record(method=method, model=model, parameters=parameters).spec
    return Run(spec, "official", "1" * 16)


def test_forecast_uses_the_most_similar_runs() -> None:
    forecast = Forecast()
    assert forecast.estimate(some_run("a", "m")) is None
    assert forecast.remaining([some_run("a", "m")], [], 1) is None
    forecast.learn(some_run("a", "m"), 10)
    forecast.learn(some_run("b", "m"), 30)
    forecast.learn(some_run("b", "n"), 50)
    assert forecast.estimate(some_run("a", "m")) == 10
    assert forecast.estimate(some_run("b", "x")) == 40
    assert forecast.estimate(some_run("x", "m")) == 20
    assert forecast.estimate(some_run("x", "x")) == 30
    assert forecast.remaining([some_run("a", "m")], [(some_run("b", "m"), 25.0)], 2) == 7.5
    assert forecast.remaining([], [(some_run("a", "m"), 99.0)], 1) == 0


def test_forecast_tells_settings_apart() -> None:
    forecast = Forecast()
    forecast.learn(some_run("a", "m", block=False), 1)
    forecast.learn(some_run("a", "m", block=True), 99)
    assert forecast.estimate(some_run("a", "m", block=True)) == 99
    assert forecast.estimate(some_run("a", "n", block=False)) == 1
    assert forecast.estimate(some_run("a", "m", block=None)) == 50


def test_duration() -> None:
    assert [duration(s) for s in (None, 0.4, 75, 3675)] == ["-:--", "0:00", "1:15", "1:01:15"]


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert capsys.readouterr().out == f"vit-ptq-bench {told}\n"
    assert vit_ptq_bench.__version__ == told


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", shell])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "check-method" in out and "--calibration-images" in out
