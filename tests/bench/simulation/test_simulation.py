"""Seconds of runs that were not made, by hand; and the command."""

import json
from dataclasses import replace

import pytest

from tests.bench.samples import MADE, make_record, on
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.registry import make_task
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.simulation.costs import Costs
from vit_ptq_bench.bench.simulation.speeds import Speeds
from vit_ptq_bench.tasks import TaskOptions


def timed(record, **seconds):
    """The record with other seconds; of four images."""
    return replace(record, seconds=seconds)


def written(folder, *records):
    for record in records:
        Store(folder).write(record)
    return folder


def full(evaluate=0.4):
    record = make_record(method="fp32", bits="W32A32", fidelity="reference", images=0)
    return timed(record, evaluate=evaluate, total=evaluate)


def minmax(**what):
    # 32 images of 0.1 s are 3.2 s: calibration is 2 F; an image takes twice as long; 0.5 s for the rest.
    return timed(make_record(**what), calibrate=6.4, evaluate=0.8, total=7.7)


def simulated(folder, capsys, *words, suite="imagenet"):
    status = main(["simulate", suite, "--results", str(folder), "--json", *words])
    assert status == 0
    return json.loads(capsys.readouterr().out)


FASHION = """
task = "fashion"
models = ["vit_mini"]
methods = ["minmax"]
bits = ["W4A4", "W6A6"]
seeds = [0, 1, 2]
limit = 1000
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(FASHION)
    return str(path)


def test_the_seconds_of_runs_by_hand(tmp_path, suite, capsys):
    folder = written(tmp_path / "r", full(), minmax(), minmax(seed=1))
    found = simulated(folder, capsys, "--devices", "2", suite=suite)
    # Full precision: 100 s. Six runs of 6.4 + 1000 x 0.2 + 0.5 = 206.9 s, three on each device.
    assert found["runs"] == 7
    assert found["makespan_hours"] == pytest.approx((100 + 3 * 206.9) / 3600, abs=6e-4)
    assert found["busy_hours"] == pytest.approx((100 + 6 * 206.9) / 3600, abs=6e-4)
    assert found["idle_share"] == pytest.approx(100 / (200 + 6 * 206.9), abs=1e-4)
    assert found["methods"]["minmax"] == {
        "runs": 6,
        "calibration_passes": 2.0,
        "evaluation": 2.0,
        "hours": pytest.approx(6 * 206.9 / 3600, abs=6e-4),
        "guessed": 0,
    }
    assert found["models"] == {"vit_mini": {"images_per_second": 10.0, "from": "records"}}


def test_a_device_of_another_speed(tmp_path, suite, capsys):
    folder = written(tmp_path / "r", full(), minmax())
    found = simulated(folder, capsys, "--speed", "vit_mini=100", suite=suite)
    assert found["makespan_hours"] == pytest.approx((10 + 6 * (0.64 + 20 + 0.5)) / 3600, abs=6e-4)


def test_models_are_scaled_by_their_operations(tmp_path, suite, capsys):
    folder = written(tmp_path / "r", full(), minmax())
    words = ("--models", "vit_mini,deit_mini,swin_mini", "--methods", "minmax")
    found = simulated(folder, capsys, *words, suite=suite)["models"]
    assert found["vit_mini"]["from"] == "records" and found["deit_mini"]["from"] == "operations"
    # Six blocks of eight, with 51 tokens in place of 50.
    ratio = found["deit_mini"]["images_per_second"] / found["vit_mini"]["images_per_second"]
    assert 8 / 6 * 0.96 < ratio < 8 / 6


def test_the_suite_of_the_literature_needs_no_data(tmp_path, capsys):
    folder = written(tmp_path / "r", full(), minmax())
    words = ("--devices", "8", "--methods", "minmax,gptq", "--speed", "deit_small_patch16_224=1000")
    found = simulated(folder, capsys, *words)
    assert found["runs"] == 8 * (1 + 2 * 3 * 2)
    small = found["models"]["vit_small_patch16_224.augreg_in21k_ft_in1k"]["images_per_second"]
    base = found["models"]["deit_base_patch16_224.fb_in1k"]["images_per_second"]
    # What timm gives for them: 4.6 and 17.6 GMACs.
    assert small == 1000 and 1000 / base == pytest.approx(17.6 / 4.6, rel=0.02)
    assert found["methods"]["gptq"]["guessed"] == 48 and not found["methods"]["minmax"]["guessed"]
    assert found["least_hours"] <= found["makespan_hours"]


def test_runs_on_made_images_do_not_speak_for_others(tmp_path, suite, capsys):
    dear = timed(on(make_record(seed=5), MADE), calibrate=640.0, evaluate=0.8, total=641.0)
    folder = written(tmp_path / "r", full(), minmax(), dear)
    assert simulated(folder, capsys, suite=suite)["methods"]["minmax"]["calibration_passes"] == 2.0


def test_runs_of_other_machines_and_failures_do_not_count():
    elsewhere = replace(minmax(), environment={"device_name": "another", "threads": 2})
    for records in ([elsewhere, full()], [full()], [minmax()], [make_record(status="failed")], []):
        with pytest.raises(BenchError, match="full-precision run of its model beside it"):
            Costs(records)


def test_a_speed_that_nobody_knows_is_asked_for():
    task = make_task("scenes", TaskOptions())
    model = "mask_rcnn_swin_mini"
    with pytest.raises(BenchError, match=f"--speed {model}=IMAGES_PER_SECOND"):
        Speeds({}, {}, task).of(model)
    assert Speeds({model: 4.0}, {}, task).of(model).seconds == 0.25
    fashion = make_task("fashion", TaskOptions())
    with pytest.raises(BenchError, match="no measured model"):
        Speeds({}, {("gone", "model"): 1.0, ("scenes", model): 1.0}, fashion).of("vit_mini")


@pytest.mark.parametrize("text", ["vit_mini", "vit_mini=0", "vit_mini=nan", "=3", "vit_mini=1e999"])
def test_speeds_that_are_none_are_refused(text, capsys):
    assert main(["simulate", "quick", "--speed", text]) == 2
    assert "write it as MODEL=IMAGES_PER_SECOND" in capsys.readouterr().err


def test_what_cannot_be_simulated_is_told(tmp_path, suite, capsys):
    assert main(["simulate", suite, "--results", str(tmp_path / "none")]) == 2
    assert "name folders with --results" in capsys.readouterr().err
    folder = written(tmp_path / "r", full(), minmax())
    assert main(["simulate", suite, "--results", str(folder), "--speed", "nosuch=3"]) == 2
    assert "task fashion has no model 'nosuch'" in capsys.readouterr().err


def test_it_prints_what_fits_a_terminal(tmp_path, suite, capsys):
    folder = written(tmp_path / "r", full(), minmax())
    assert main(["simulate", suite, "--results", str(folder), "--devices", "2"]) == 0
    text = capsys.readouterr().out
    assert "7 runs, 22.4 min of work; on 2 devices 12.0 min, 6.9% of their time idle" in text
    assert "minmax  6     2.0  2.0         0.34" in text
    assert max(len(line) for line in text.splitlines()) <= 110
