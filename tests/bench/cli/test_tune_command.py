"""`bench tune` through the command line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bench.toys import ROOT
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.methods import METHODS, quantize
from vit_ptq_bench.methods.quantization import Calibration
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.tasks.fashion import Fashion

FEW = ("--held-out", "8", "--calibration-sizes", "4,8", "--bits", "W3A3")
WHERE = Path("output/tune-repq-vit-vit_mini-W3A3")


OWN = ("--parameters", "zero_point,scale")
MIXED = ("--parameters", "mixed")


def tune(*words: str, method: str = "repq-vit") -> int:
    own = OWN if method == "repq-vit" else ()
    return main(["tune", method, "fashion", "vit_mini", *FEW, *own, *words])


def trials_in(folder: Path = WHERE) -> list[dict]:
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def compared(trials: list[dict]) -> list[tuple]:
    return [(json.dumps(one["configuration"], sort_keys=True), one["value"]) for one in trials]


def test_the_best_of_all_configurations_is_found_written_and_runs(folder, capsys, monkeypatch):
    """Each value against a divergence by hand, from the method called from Python."""
    with monkeypatch.context() as patched:
        patched.setattr(Fashion, "evaluate", None)  # evaluation images are not looked at
        assert tune() == 0
    out = capsys.readouterr().out
    trials = trials_in()
    assert len(trials) == 8 and len(set(compared(trials))) == 8

    task = Fashion()
    loaded = task.load_model("vit_mini")
    drawn = torch.cat(task.calibration_batches(loaded, 16, 0))
    held, model = drawn[8:], loaded.module
    for trial in trials:
        own = trial["configuration"]
        images = torch.cat(task.calibration_batches(loaded, own["images"], 0))
        assert torch.equal(images, drawn[: own["images"]])  # what a run of that size draws
        with torch.no_grad():
            exact = model(held).double().log_softmax(1).numpy()
            found = quantize(model, "repq-vit", "W3A3", images, **own["parameters"])(held)
            found = found.double().log_softmax(1).numpy()
        expected = np.mean(np.sum(np.exp(exact) * (exact - found), axis=1))
        assert trial["value"] == pytest.approx(expected, rel=1e-4)

    best = min(trials, key=lambda one: one["value"])
    assert (
        f"best: {best['value']:.5f} with repq-vit images={best['configuration']['images']}" in out
    )
    assert f"as it is: {trials[0]['value']:.5f} with repq-vit images=8" in out
    [command] = [line.strip() for line in out.splitlines() if line.startswith("    bench run ")]
    assert main([*shlex.split(command)[1:], "--limit", "40", "--output", "ran"]) == 0
    [record] = [one for one in Store(Path("ran")).records() if one.spec.bits == "W3A3"]
    assert record.ok and record.variant == "tuned"
    assert record.spec.calibration.images == best["configuration"]["images"]
    for name, value in best["configuration"]["parameters"].items():
        assert record.spec.method.parameters[name] == value


def test_a_search_in_two_goes_is_one_and_is_not_repeated(folder, capsys):
    assert tune("--trials", "5", "--output", "whole") == 0
    assert tune("--trials", "2", "--output", "parts") == 0
    capsys.readouterr()
    assert tune("--trials", "5", "--output", "parts") == 0
    assert "2 trials are there from before" in capsys.readouterr().out
    assert compared(trials_in(Path("parts"))) == compared(trials_in(Path("whole")))
    name = f"{WHERE.name}.toml"
    assert (Path("parts") / name).read_text() == (Path("whole") / name).read_text()


def test_finished_trials_need_no_model(folder, capsys, monkeypatch):
    assert tune("--trials", "1") == 0
    monkeypatch.setattr(Fashion, "load_model", None)
    assert tune("--trials", "1") == 0


def test_another_seed_searches_elsewhere_and_does_not_mix(folder, capsys):
    assert tune("--trials", "3", "--output", "a") == 0
    assert tune("--trials", "3", "--output", "b", "--seed", "1") == 0
    first, second = (compared(trials_in(Path(name))) for name in "ab")
    assert first != second
    assert tune("--trials", "3", "--output", "a", "--seed", "1") == 2
    assert "another search (" in capsys.readouterr().err


def test_by_local_sums_the_sites(folder, capsys):
    from vit_ptq_bench.methods.quantization import inspect_sites

    assert tune("--trials", "2", "--by", "local") == 0
    assert "summed SQNR of all sites, dB" in capsys.readouterr().out
    first = trials_in()[0]
    task = Fashion()
    loaded = task.load_model("vit_mini")
    drawn = torch.cat(task.calibration_batches(loaded, 16, 0))
    method = METHODS.get("repq-vit").create(first["configuration"]["parameters"])
    table = method.bit_table(BitWidth.parse("W3A3"))
    images = Calibration([drawn[:8]], seed=0)
    model = method.quantize(loaded.module, table, images, keep_unrounded=True)
    figures = inspect_sites(model, Calibration([drawn[8:]], seed=0))
    assert len(figures) == 100
    assert first["value"] == pytest.approx(sum(one.sqnr for one in figures), rel=1e-4)
    best = max(trials_in(), key=lambda one: one["value"])
    suite = (WHERE / f"{WHERE.name}.toml").read_text()
    assert f"calibration_images = {best['configuration']['images']}" in suite


@pytest.mark.parametrize(
    "methods, searched, count",
    [("minmax", "mixed", 4), ("minmax,percentile", "table", 18)],
)
def test_methods_tables_and_shared_bits_are_tried_and_the_best_runs(
    methods, searched, count, folder, capsys
):
    """Divergences against the method called by hand, and the run of the best has what was found."""
    words = "--calibration-sizes 8 --held-out 8 --bits W3A3 --output found --parameters"
    assert main(["tune", methods, "fashion", "vit_mini", *words.split(), searched]) == 0
    trials = trials_in(Path("found"))
    assert len(trials) == count
    task = Fashion()
    loaded = task.load_model("vit_mini")
    drawn = torch.cat(task.calibration_batches(loaded, 16, 0))
    calibration, held = Calibration([drawn[:8]], seed=0), drawn[8:]
    exact = loaded.module(held).detach().double().log_softmax(1)
    changed = [one for one in trials if one["configuration"][searched]]
    for trial in [trials[0], *changed[:2]]:
        own = trial["configuration"]
        bits = BitWidth(3, 3, own["mixed"])
        changes = [own["table"]] if own["table"] else []
        method = METHODS.get(own["method"]).create().with_table(changes)
        table = method.planned_table(bits, own["protocol"])
        table = method.mixed_table(loaded.module, table, bits, calibration)
        found = method.quantize(loaded.module, table, calibration)(held).detach()
        found = found.double().log_softmax(1)
        expected = (exact.exp() * (exact - found)).sum(1).mean()
        assert trial["value"] == pytest.approx(float(expected), rel=1e-4)
    own = min(trials, key=lambda one: one["value"])["configuration"]
    [suite] = Path("found").glob("*.toml")
    assert main(["run", str(suite), "--limit", "40", "--output", "ran"]) == 0
    [record] = [one for one in Store(Path("ran")).records() if not one.spec.is_reference]
    assert record.ok and record.spec.method.name == own["method"]
    assert record.spec.bits == ("W3A3:mixed" if own["mixed"] else "W3A3")
    assert list(record.spec.method.table) == ([own["table"]] if own["table"] else [])


def test_a_detector_is_judged_by_its_feature_maps(folder, capsys):
    words = ["tune", "minmax", "scenes", "mask_rcnn_swin_mini", "--trials", "2", "--bits", "W4A4"]
    sizes = ["--held-out", "2", "--calibration-sizes", "2"]
    assert main([*words, *sizes, "--output", "found"]) == 0
    assert "relative error of feature maps" in capsys.readouterr().out
    values = [one["value"] for one in trials_in(Path("found"))]
    assert len(values) == 2 and all(0 < value < 10 for value in values)
    [suite] = Path("found").glob("*.toml")
    assert main(["run", str(suite), "--dry-run"]) == 0
    assert "backbone" in suite.read_text()


def test_dry_run_prints_the_space_and_loads_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr(Fashion, "load_model", None)
    assert tune("--dry-run", method="rose") == 0
    out = capsys.readouterr().out
    assert "uniform" in out and "24 trials, judged by KL divergence on 8 calibration" in out
    assert not Path("output").exists()


WRONG = {
    "method": (["repqvit", "fashion", "vit_mini"], "did you mean 'repq-vit'"),
    "reference": (["fp32", "fashion", "vit_mini"], "nothing to tune"),
    "task": (["minmax", "fasion", "vit_mini"], "did you mean 'fashion'"),
    "model": (["minmax", "fashion", "vit"], "unknown model 'vit'"),
    "bits": (["minmax", "fashion", "vit_mini", "--bits", "4"], "write it like W4A4"),
    "trials": (["minmax", "fashion", "vit_mini", "--trials", "0"], "must be at least 1"),
    "sizes": (["minmax", "fashion", "vit_mini", "--calibration-sizes", "8,no"], "--calibration-s"),
    "size": (["minmax", "fashion", "vit_mini", "--calibration-sizes", "0"], "must be at least 1"),
    "held out": (["minmax", "fashion", "vit_mini", "--held-out", "0"], "must be at least 1"),
    "parameter": (["rose", "fashion", "vit_mini", "--parameters", "atention"], "'attention'"),
    "general": (["rose,gptq", "fashion", "vit_mini", "--parameters", "mixd"], "'mixed'"),
    "none": (
        ["igq-vit", "fashion", "vit_mini", "--calibration-sizes", "8", "--bits", "W8A8", *MIXED],
        "has no choices",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_before_any_work(name, folder, capsys, monkeypatch):
    words, message = WRONG[name]
    monkeypatch.setattr(Fashion, "load_model", None)
    assert main(["tune", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("output").exists()


def test_too_few_training_images_are_told(folder, capsys):
    assert tune("--held-out", "5000") == 2
    assert "2000 images to draw" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of a terminal")
def test_ctrl_c_keeps_the_trials(folder):
    """Stopped in the middle as from a terminal, it goes on to what it would have found."""
    words = [
        sys.executable,
        "-m",
        "vit_ptq_bench",
        "tune",
        "repq-vit",
        "fashion",
        "vit_mini",
        *FEW,
        *OWN,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 300
    file = WHERE / "trials.jsonl"
    while not (file.exists() and len(file.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on from here" in out
    before = compared(trials_in())
    assert 2 <= len(before) < 8
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert compared(trials_in())[: len(before)] == before
    assert len(trials_in()) == 8
