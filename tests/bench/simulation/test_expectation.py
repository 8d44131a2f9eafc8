"""What a dry run says of hours, memory and disk, beside sums by hand; and a probe of a real model."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, replace

import pytest
import timm

from tests.bench.simulation.test_simulation import full, minmax, written
from vit_ptq_bench.bench.cli import expectation, main
from vit_ptq_bench.bench.cli.text import hours
from vit_ptq_bench.bench.execution import room
from vit_ptq_bench.bench.planning.overwrite import decisions_of
from vit_ptq_bench.bench.planning.settings import resolve_run
from vit_ptq_bench.bench.records.spec import MethodSpec
from vit_ptq_bench.bench.simulation.costs import Cost, Costs
from vit_ptq_bench.bench.simulation.expectation import expected_peak
from vit_ptq_bench.bench.simulation.saved_sizes import saved_mb
from vit_ptq_bench.bench.simulation.usual import table_of, usual_costs, usual_peaks, usual_sizes
from vit_ptq_bench.methods import METHODS
from vit_ptq_bench.tasks import TaskOptions

SUITE = """
task = "fashion"
models = ["vit_mini"]
methods = ["minmax", "repq-vit"]
bits = ["W4A4"]
seeds = [0, 1]
limit = 1000
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with a suite."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(SUITE)
    return tmp_path


def said(capsys, *words):
    assert main(["run", "own.toml", "--dry-run", "--output", "out", *words]) == 0
    return capsys.readouterr().out


def test_hours_by_hand(place, capsys):
    written(place / "results", full(), minmax())
    text = said(capsys, "--workers", "2")
    # Full precision 100 s; minmax 6.4 + 1000 x 0.2 + 0.5 = 206.9 s, of repq-vit nothing else is known: four.
    assert f"about {(100 + 4 * 206.9) / 60:.1f} min of work" in text
    assert f", {(100 + 2 * 206.9) / 60:.1f} min with 2 at a time" in text
    assert "the longest run, vit_mini minmax W4A4 equal seed 0, takes 3.4 min" in text
    assert "images/s in full precision: vit_mini 10 (as on the machines of the records" in text
    assert "no record has the method, or its settings, of 2 of 5 runs" in text


def test_short_times_are_told_in_seconds(place, capsys):
    spent = {name: second / 1000 for name, second in minmax().seconds.items()}
    written(place / "results", full(evaluate=0.0004), replace(minmax(), seconds=spent))
    text = said(capsys, "--methods", "minmax", "--workers", "1")
    assert re.search(r"takes [0-9]+\.[0-9] s\n", text) and "0.0 min" not in text
    assert [hours(number / 3600) for number in (0.04, 5.94, 6.0, 90.0, 3600.0)] == [
        "0.1 s",
        "5.9 s",
        "0.1 min",
        "1.5 min",
        "1.0 h",
    ]


def test_devices_of_jobs_are_only_spelled(place, capsys):
    words = ("--executor", "slurm", "--slurm", "time=60", "--device", "cuda:7777")
    assert "runs would run" in said(capsys, *words)
    assert main(["run", "own.toml", "--dry-run", *words[:-1], "cuda:x"]) == 2
    assert "unknown device 'cuda:x'" in capsys.readouterr().err


def test_only_what_is_due_counts(place, capsys):
    written(place / "results", full(), minmax())
    [first, *_] = decisions_of(
        resolve_run({"suite": "own.toml", "output": "out", "methods": "minmax"})
    )
    reference = replace(full(), spec=first.run.spec)
    written(place / "out", reference)
    text = said(capsys, "--methods", "minmax", "--workers", "1")
    assert "2 of 3 runs would run" in text
    assert f"about {2 * 206.9 / 60:.1f} min of work; the longest" in text
    done = said(capsys, "--methods", "fp32")
    assert "0 of 1 runs would run" in done and "of work" not in done and "disk" not in done


def test_without_records_the_message_says_where_they_were_looked_for(place, capsys):
    text = said(capsys, "--device", "cuda:7", "--executor", "slurm", "--slurm", "time=60")
    searched = f"(looked for in {place / 'results'} and in --output out)\n"
    speed = "no record tells how fast vit_mini is; --probe measures it here"
    assert f"how long it takes is not known: {speed} {searched}" in text
    assert f"memory: not known, no record on cuda is of a run like these {searched}" in text
    assert re.search(r"disk: up to 4 GB while it runs \(--share-gb\); [0-9.]+ GB are free\n", text)


def test_without_records_the_costs_that_the_package_brings_count(place, capsys):
    text = said(capsys, "--probe", "--workers", "1")
    found = re.search(r"images/s in full precision: vit_mini ([0-9.e+]+) \(measured here", text)
    assert found
    costs = [usual_costs({"fashion"})[name] for name in ("minmax", "repq-vit")]
    images = 1000 + 2 * sum(32 * cost.passes + 1000 * cost.evaluation for cost in costs)
    seconds = images / float(found[1]) + 2 * sum(cost.rest for cost in costs)
    told = re.search(r"about ([0-9.]+) (s|min) of work", text)
    assert told and float(told[1]) * {"s": 1, "min": 60}[told[2]] == pytest.approx(seconds, rel=0.1)
    assert "no record of a method with full precision beside it is at hand (looked for in" in text
    assert "the method, or its settings, of" not in text
    memory = r"memory: up to [0-9.]+ GB a run \(.*\) as in the project's own records, 1 at a time"
    assert re.search(memory, text)


def test_the_speed_of_a_record_of_full_precision_alone_counts(place, capsys):
    written(place / "out", full())
    text = said(capsys)
    assert "images/s in full precision: vit_mini 10 (as on the machines of the records" in text
    assert "of work" in text and "with their usual settings, is what the package" in text


def test_settings_and_methods_that_the_package_does_not_know(place, capsys):
    usual = {"minmax": Cost(2.0, 1.5, 0.1), "gptq": Cost(4.0, 1.5, 0.3)}
    costs = Costs([], usual)
    assert costs.of(MethodSpec("minmax", 1, {}), "training", 32, "W4A4") == usual["minmax"]
    other = costs.of(MethodSpec("nosuch", 1, {}), "training", 32, "W4A4")
    assert (other.passes, other.narrow) == (3.0, False)
    assert not Costs([full(), minmax()], usual).usual


def test_the_table_that_the_package_brings_is_made_of_records_with_usual_settings(tmp_path):
    usual = asdict(METHODS.get("percentile").create({}).parameters)
    dear = {"calibrate": 640.0, "evaluate": 4.0, "total": 650.0}
    records = [
        full(),
        minmax(method="percentile", parameters=usual),
        replace(minmax(method="percentile", parameters={**usual, "another": 1}), seconds=dear),
        minmax(method="gone"),
    ]
    table = table_of([measured(record, 300.0) for record in records])
    assert table["costs"] == {"fashion": {"percentile": [2.0, 2.0, 0.5]}}
    assert table["peaks_mb"]["cpu"] == {
        "fashion": {"vit_mini": {"fp32": 300.0, "percentile": 300.0}}
    }


def test_the_package_brings_costs_of_every_kind_of_task_and_of_most_methods():
    for task in ("fashion", "imagenet", "scenes", "coco"):
        costs = usual_costs({task})
        assert len(set(costs) & set(METHODS.module_dict)) > 0.9 * (len(METHODS.module_dict) - 1)
        assert costs["minmax"].passes < costs["repq-vit"].passes < costs["brecq"].passes
    assert ("cpu", "imagenet", "vit_tiny_patch16_224", "minmax") in usual_peaks()


FEWER = "ask for fewer --calibration-images, or take another machine"


@pytest.mark.parametrize(
    ("free", "end"),
    [
        (50_000.0, "; 50.0 GB are free on cpu\n"),
        (3_000.0, "; 3.0 GB are free on cpu: too little for 2, so that runs wait for each other\n"),
        (1_000.0, f"; 1.0 GB are free on cpu: too little for this run; {FEWER}\n"),
        (None, "\n"),
    ],
)
def test_memory_as_like_runs_took(place, capsys, monkeypatch, free, end):
    written(place / "results", measured(full(), 300.0), measured(minmax(), 2000.0))
    monkeypatch.setattr(room, "free_mb", lambda device: free)
    text = said(capsys, "--workers", "2", "--methods", "minmax")
    run = "vit_mini minmax W4A4 equal seed 0"
    assert f"memory: up to 2.0 GB a run ({run}), 2 at a time{end}" in text


def measured(record, peak, device="cpu"):
    """The record of a run that took so many MB on a device."""
    environment = {**record.environment, "device": device}
    return replace(record, peak_memory_mb=peak, environment=environment)


def test_memory_of_other_devices_does_not_count(place, capsys):
    written(place / "results", measured(full(), 300.0), measured(minmax(), 9000.0, "cuda:0"))
    assert "memory: up to 0.3 GB a run (vit_mini fp32)" in said(capsys, "--methods", "minmax")


def test_the_peak_is_that_of_the_nearest_runs(place):
    options = resolve_run({"suite": "own.toml", "output": "out"})
    runs = [decision.run for decision in decisions_of(options)]
    other = replace(minmax(model="deit_mini"), peak_memory_mb=5000.0)
    assert expected_peak(runs, [other]) is None
    assert expected_peak(runs, []) is None
    run, peak = expected_peak(runs, [other, replace(minmax(), peak_memory_mb=300.0)])
    assert (run.spec.method.name, peak) == ("minmax", 300.0)


def test_too_little_disk(place, capsys, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(expectation.shutil, "disk_usage", lambda folder: usage)
    assert "1.0 GB are free: too little, say less with --share-gb" in said(capsys)
    assert "up to 0.5 GB while it runs (--share-gb); 1.0 GB are free\n" in said(
        capsys, "--share-gb", "0.5"
    )


def test_models_that_are_kept_count(place, capsys, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(expectation.shutil, "disk_usage", lambda folder: usage)
    words = ("--save-models", "--methods", "minmax", "--share-gb", "0.5")
    whole = usual_sizes()["fashion", "vit_mini"]
    assert 14 < whole < 15
    small = f"and {whole * (1 + 2 * 4 / 32) / 1000:.2g} GB of saved models (--save-models)"
    assert f"disk: up to 0.5 GB while it runs (--share-gb), {small}; 1.0 GB are free\n" in said(
        capsys, *words
    )
    # 600 MB in full precision and 90 MB at W4A4, as records have it: 0.5 + 0.78 GB.
    written(place / "out", replace(full(), size_mb=600.0), replace(minmax(), size_mb=90.0))
    text = said(capsys, *words)
    assert "and 0.78 GB of saved models (--save-models); 1.0 GB are free: too little" in text
    assert "leave out --save-models" in text


def test_sizes_of_models_that_no_record_has(place, monkeypatch):
    run = decisions_of(resolve_run({"suite": "own.toml", "output": "out"}))[1].run

    def of(task, model):
        spec = run.spec
        changed = replace(spec.task, name=task), replace(spec.model, name=model)
        return replace(run, spec=replace(spec, task=changed[0], model=changed[1]))

    options = {name: TaskOptions() for name in ("imagenet", "fashion")}
    parameters = sum(one.numel() for one in timm.create_model("deit_tiny_patch16_224").parameters())
    size, unknown = saved_mb([of("imagenet", "deit_tiny_patch16_224")], options, [])
    assert (size, unknown) == (pytest.approx(parameters * 4 / 8 / 10**6), 0)
    assert saved_mb([of("fashion", "nosuch")], options, []) == (0.0, 1)


def test_a_probe_measures_the_model_here(place, capsys):
    written(place / "results", full(evaluate=400.0), minmax())
    text = said(capsys, "--probe", "--methods", "minmax")
    found = re.search(r"vit_mini ([0-9.e+]+) \(measured here just now\)", text)
    assert found and float(found[1]) > 1  # the record's machine takes 100 s an image


def test_a_probe_without_a_dry_run_is_refused(place, capsys):
    assert main(["run", "own.toml", "--probe"]) == 2
    assert "--probe tells how long a sweep would take: give --dry-run" in capsys.readouterr().err
