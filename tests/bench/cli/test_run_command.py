"""`bench run` on toys: every run in its own process, in this test's process the rest."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.bench.toys import FAKES, by_label, records, results, run, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.execution.devices import SMALL_RUNS, default_workers
from vit_ptq_bench.bench.planning import registry


def test_a_sweep_records_everything_and_runs_nothing_twice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain", "toy-random"]', models='["toy_a", "toy_b"]', seeds="[0, 1]")
    assert run() == 0
    found = records()
    assert len(found) == 2 * (1 + 2 * 2)
    assert {record["status"] for record in found.values()} == {"ok"}
    for name, record in found.items():
        assert record["run_id"] == name
        assert record["peak_memory_mb"] > 0
        assert record["size_mb"] > 0
        assert set(record["seconds"]) == {"load", "calibrate", "save", "evaluate", "total"}
        assert record["environment"]["threads"] == 1  # the toy task's models are small
        assert record["environment"]["plugins"][0]["file"] == FAKES.name
        assert record["common_differs"].keys() <= record["spec"]["table"].keys()
    references = [r for r in found.values() if r["spec"]["method"]["name"] == "fp32"]
    assert [r["metrics"]["top1"] for r in references] == [100.0, 100.0]
    assert all(r["spec"]["calibration"]["images"] == 0 for r in references)
    before = {path: path.stat().st_mtime_ns for path in Path("output/toy/runs").rglob("*.json")}
    capsys.readouterr()
    assert run() == 0
    out = capsys.readouterr().out
    assert out.startswith("suite toy: 10 runs: 2 models x (2 methods x 1 bit width x ")
    assert "10 runs: 10 had their record; now nothing to do" in out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_small_models_run_one_per_core_others_one_per_device() -> None:
    assert default_workers(["cpu"], cores=2, small=True) == 2
    assert default_workers(["cpu"], cores=64, small=True) == SMALL_RUNS
    assert default_workers(["cpu"], cores=64, small=False) == 1
    assert default_workers(["cuda:0", "cuda:1"], cores=64, small=True) == 2
    assert registry.is_small("fashion") and registry.is_small("scenes")
    assert not registry.is_small("imagenet") and not registry.is_small("coco")


def test_seeds_decide_the_result_and_nothing_else_does(folder: Path) -> None:
    write_suite(folder, '["toy-random", "toy-vandal", "toy-plain"]', bits='["W3A3"]')
    assert run("--output", "one", "--seed", "0,1") == 0
    assert run("--output", "two", "--seed", "1", "--seed", "0", "--workers", "3") == 0
    assert results("one") == results("two")
    assert run("--output", "three", "--methods", "toy-random", "--seed", "0,1") == 0
    without_vandal = results("three")
    assert without_vandal == {name: results("one")[name] for name in without_vandal}
    sums = [r["outcomes_sha256"] for r in without_vandal.values() if r["spec"]["seed"] < 2]
    assert len(set(sums)) > 1


def test_failures_are_recorded_and_the_sweep_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segfault = f"number = {int(signal.SIGSEGV)}"
    write_suite(folder, '["toy-fail", "toy-memory", "toy-killed", "toy-picky", "toy-plain"]')
    assert run() == 1
    found = by_label()
    failed = found["toy_a toy-fail W4A4"]
    assert failed["status"] == "failed"
    assert failed["error"]["type"] == "ZeroDivisionError"
    assert failed["error"]["message"] == "the toy is broken"
    assert "fakes.py" in "\n".join(failed["error"]["traceback"])
    assert failed["environment"]["torch"]
    assert "calibrate" in failed["seconds"]
    assert found["toy_a toy-memory W4A4"]["status"] == "oom"
    killed = found["toy_a toy-killed W4A4"]
    assert (killed["status"], killed["error"]["type"]) == ("oom", "SIGKILL")
    picky = found["toy_a toy-picky W4A4"]
    assert (picky["status"], picky["error"]["message"]) == ("skipped", "the toy is picky")
    assert found["toy_a toy-plain W4A4"]["status"] == "ok"
    assert "1 failed, 2 ok, 2 oom, 1 skipped" in capsys.readouterr().out
    write_suite(folder, '["toy-killed"]', **{"parameters.toy-killed": segfault})
    assert run("--output", "crash") == 1
    crashed = by_label("crash")["toy_a toy-killed W4A4"]
    assert (crashed["status"], crashed["error"]["type"]) == ("failed", "SIGSEGV")
    assert any("calibrate" in line for line in crashed["error"]["traceback"])


def test_timeout(folder: Path) -> None:
    write_suite(folder, '["toy-slow", "toy-plain"]', **{"parameters.toy-slow": "seconds = 60.0"})
    assert run("--timeout", "6") == 1
    slow = by_label()["toy_a toy-slow W4A4"]
    assert (slow["status"], slow["error"]["message"]) == ("timeout", "stopped after 6 seconds")
    assert by_label()["toy_a toy-plain W4A4"]["status"] == "ok"


def test_full_precision_gate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_suite(folder, '["toy-plain"]', models='["toy_wrong", "toy_a"]')
    assert run() == 1
    found = by_label()
    reference = found["toy_wrong fp32 W32A32"]
    assert reference["status"] == "failed"
    assert "toy_wrong reaches 100.00 top1" in reference["error"]["message"]
    assert "check the checkpoint and the preprocessing" in reference["error"]["message"]
    skipped = found["toy_wrong toy-plain W4A4"]
    assert skipped["status"] == "skipped"
    assert reference["error"]["message"] in skipped["error"]["message"]
    assert found["toy_a toy-plain W4A4"]["status"] == "ok"
    assert run("--output", "part", "--limit", "10") == 0, "no gate on part of the data"
    assert run("--overwrite", "never", "--methods", "toy-random") == 1
    assert by_label()["toy_wrong toy-random W4A4"]["status"] == "skipped"


def test_overwrite_modes(folder: Path) -> None:
    write_suite(folder, '["toy-plain", "toy-fail"]')
    run()

    def repeated(*arguments: str) -> set[str]:
        before = {path: path.stat().st_mtime_ns for path in Path("output").rglob("*.json")}
        run(*arguments)
        return {
            records()[path.stem]["spec"]["method"]["name"]
            for path, time in before.items()
            if path.stat().st_mtime_ns != time
        }

    assert repeated("--overwrite", "never") == set()
    assert repeated() == {"toy-fail"}
    assert repeated("--overwrite", "missing") == {"toy-fail"}
    plain = by_label()["toy_a toy-plain W4A4"]
    next(Path("output").rglob(f"{plain['run_id']}.npz")).write_bytes(b"damaged")
    assert repeated("--overwrite", "missing") == {"toy-fail", "toy-plain"}
    assert repeated("--overwrite", "missing") == {"toy-fail"}


def test_dry_run_runs_nothing_and_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-*"]', bits='["W4A4", "W3A3"]')
    assert run("--dry-run", "--methods", "toy-plain,toy-fail") == 0
    out = capsys.readouterr().out
    assert out.startswith("suite toy: 5 runs: 1 model x (2 methods x 2 bit widths x ")
    assert "5 of 5 runs would run" in out
    assert "no record yet" in out
    assert not Path("output").exists()
    run("--methods", "toy-plain,toy-fail")
    capsys.readouterr()
    assert run("--dry-run", "--methods", "toy-plain,toy-fail") == 0
    out = capsys.readouterr().out
    assert "2 of 5 runs would run" in out
    assert "was failed" in out
    assert "done" in out


def test_calibration_images(folder: Path) -> None:
    write_suite(folder, '["toy-plain", "toy-few"]', protocols='["equal", "authors"]')
    assert run() == 0

    def images() -> set[tuple[str, str, int]]:
        specs = [record["spec"] for record in records().values()]
        return {
            (s["method"]["name"], s["protocol"], s["calibration"]["images"])
            for s in specs
            if s["method"]["name"] != "fp32"
        }

    assert images() == {
        ("toy-plain", "equal", 32),
        ("toy-few", "equal", 32),
        ("toy-plain", "authors", 32),
        ("toy-few", "authors", 5),
    }
    assert run("--calibration-images", "7", "--protocol", "authors") == 0
    assert {("toy-plain", "authors", 7), ("toy-few", "authors", 7)} < images()


def test_saved_models_can_be_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run("--save-models") == 0
    record = by_label()["toy_a toy-plain W4A4"]
    file = f"output/toy/models/toy/toy_a/{record['run_id']}.safetensors"
    assert round(Path(file).stat().st_size / 10**6, 3) == record["size_mb"]
    capsys.readouterr()
    assert main(["evaluate", file, "--plugin", str(FAKES)]) == 0
    assert f"top1 {record['metrics']['top1']:.2f}" in capsys.readouterr().out
    Path(file).write_bytes(Path(file).read_bytes()[:100])
    assert main(["evaluate", file, "--plugin", str(FAKES)]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "toy-plane"],
            "--methods: unknown method 'toy-plane'; did you mean 'toy-plain'",
        ),
        (["--models", "toy_c"], "--models: unknown model 'toy_c'; did you mean"),
        (["--bits", "W9A9"], "--bits: 'W9A9': weight bits must be 2 to 8"),
        (["--protocol", "equally"], "--protocol: unknown protocol 'equally'; did you mean 'equal'"),
        (["--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--workers", "0"], "--workers: must be at least 1"),
        (["--timeout", "-1"], "--timeout: must be at least 0"),
        (["--limit", "0"], "--limit: must be at least 1"),
        (["--plugin", "nothing.py"], "plugin nothing.py: there is no such file"),
    ],
)
def test_wrong_options(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert records() == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("toy-plain", "toy-plane", "toy.toml:4: methods: unknown method 'toy-plane'; did you mean"),
        ("toy_a", "toy_x*", "toy.toml:2: models: no model matches 'toy_x*'"),
        ('"toy"', '"tow"', "toy.toml:1: task: unknown task 'tow'; did you mean 'toy'"),
        ("toy-slow]", "toy-slaw]", "toy.toml:5: parameters.toy-slaw: unknown method 'toy-slaw'"),
        ("seconds", "second", "toy.toml:6: parameters.toy-slow.second: toy-slow has no parameter"),
        (
            "0.1",
            '"long"',
            "toy.toml:6: parameters.toy-slow.seconds: toy-slow.seconds must be float",
        ),
    ],
)
def test_wrong_names_in_a_suite(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    path = write_suite(folder, '["toy-plain"]', **{"parameters.toy-slow": "seconds = 0.1"})
    path.write_text(path.read_text().replace(old, new, 1))
    assert run() == 2
    assert message in capsys.readouterr().err


def test_warnings_of_a_method_are_in_record_leaderboard_and_log(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that diverges: each unit is given back as it was calibrated, and nobody misses it."""
    settings = "iterations = 3\nweight_rate = 1e37"
    write_suite(folder, '["qdrop", "minmax"]', **{"parameters.qdrop": settings})
    assert run() == 0
    found = by_label()
    qdrop, minmax = found["toy_a qdrop W4A4"], found["toy_a minmax W4A4"]
    assert qdrop["status"] == "ok" and minmax["environment"]["warnings"] == []
    warnings = qdrop["environment"]["warnings"]
    assert any("blocks.0: the loss was not finite" in text for text in warnings)
    text = Path("output/toy/leaderboard.md").read_text()
    assert text.count("warned while calibrating, see `bench show`") == 1
    logs = "".join(path.read_text() for path in Path("output/toy/logs").glob("*.log"))
    assert logs.count("blocks.0: the loss was not finite") == 1
    capsys.readouterr()
    assert main(["show", qdrop["run_id"], "--results", "output/toy"]) == 0
    assert "warning      " in capsys.readouterr().out
