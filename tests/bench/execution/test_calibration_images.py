"""Calibration on images that are made and on those of a folder: what a run does, and the whole command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bench.planning.test_sources import write_images
from tests.bench.toys import records
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.contract.opened import opened_while
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution.calibration_images import calibration_set, made_set
from vit_ptq_bench.bench.execution.inputs import check_data
from vit_ptq_bench.bench.planning.plan import build_plan
from vit_ptq_bench.bench.planning.suite import read_suite
from vit_ptq_bench.bench.records.source import SourceSpec
from vit_ptq_bench.bench.records.spec import CalibrationSpec
from vit_ptq_bench.methods.quantization.calibration.synthesis import (
    attention_entropy,
    full_precision,
)
from vit_ptq_bench.tasks import TaskOptions
from vit_ptq_bench.tasks.fashion import Fashion

MADE = SourceSpec("psaq-vit", 1, {"steps": 2, "batch": 3})

SUITE = """
name = "other-images"
task = "fashion"
models = ["vit_mini"]
methods = ["minmax", "repq-vit"]
bits = ["W4A4"]
calibration = ["training", "psaq-vit", "folder"]
calibration_images = 4
limit = 20

[sources.psaq-vit]
steps = 2
"""


class Kept(dict):
    """A cache that notes what making its tensors took."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def put(self, key, tensors, seconds=0.0):
        self[key] = dict(tensors)
        self.seconds.append(seconds)


@pytest.fixture(scope="module")
def task():
    return Fashion(TaskOptions(limit=20))


@pytest.fixture(scope="module")
def loaded(task):
    return task.load_model("vit_mini")


def test_images_are_made_once_for_all_runs_with_the_same_settings(task, loaded):
    cache = Kept()
    planned = CalibrationSpec(4, 0, source=MADE)
    assert calibration_set(task, loaded, planned) is None
    first = made_set(task, loaded, planned, cache)
    (stored,) = cache.values()
    again = made_set(task, loaded, planned, cache)
    assert len(cache) == len(cache.seconds) == 1 and cache.seconds[0] > 0
    assert [len(batch) for batch in again.batches] == [3, 1]
    assert all(torch.equal(a, b) for a, b in zip(first.batches, again.batches, strict=True))
    assert torch.equal(again.batches[0], stored["0"])
    assert torch.equal(first.whole(), made_set(task, loaded, planned, None).whole())
    other = made_set(task, loaded, CalibrationSpec(4, 1, source=MADE), cache)
    assert not torch.equal(other.whole()[:1], first.whole()[:1])
    made_set(task, loaded, CalibrationSpec(2, 0, source=MADE), cache)
    made_set(task, loaded, replace(planned, source=SourceSpec("psaq-vit", 1, {"steps": 1})), cache)
    assert len(cache) == 4


@pytest.mark.parametrize("name", ["vit_mini", "swin_mini"])
def test_with_its_defaults_images_are_more_diverse_to_a_trained_model_than_noise(task, name):
    trained = task.load_model(name)
    planned = CalibrationSpec(2, 0, source=SourceSpec("psaq-vit", 1, {"steps": 20}))
    images = made_set(task, trained, planned, None).whole()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    model = full_precision(trained.module)
    with torch.no_grad():
        found, before = (attention_entropy(model, x, 0.05)[0].mean() for x in (images, noise))
    assert found > before + 0.1


def test_no_file_is_opened_while_images_are_made(task, loaded):
    planned = CalibrationSpec(2, 0, source=MADE)
    assert opened_while(lambda: made_set(task, loaded, planned, None)) == []


def test_a_method_that_needs_no_images_gets_none_made(task, loaded):
    blank = calibration_set(task, loaded, CalibrationSpec(0, 0))
    assert blank is not None and blank.n_images == 1


def test_images_of_a_folder_are_read_as_the_task_s_own(tmp_path, loaded):
    folder = write_images(tmp_path / "other")
    task = Fashion(TaskOptions(calibration_dir=folder))
    planned = CalibrationSpec(3, 5, source=SourceSpec("folder", data=task.folder_id()))
    found = calibration_set(task, loaded, planned).whole()
    assert found.shape == (3, 3, 28, 28)
    paths = sorted(folder.rglob("*.png"))
    order = np.random.default_rng(5).permutation(len(paths))[:3]
    for image, index in zip(found, order, strict=True):
        grey = Image.open(paths[index]).convert("L").crop((5, 0, 25, 20))  # the middle square
        pixels = np.asarray(grey.resize((28, 28), Image.Resampling.BICUBIC), dtype=np.float32)
        for channel in image:
            apart = np.abs(channel.numpy() - (pixels / 255 - 0.5) / 0.5)
            assert (
                apart[:, 3:-3].max() < 0.02
            )  # behind the cut, resizing may look at what was cut off


def test_a_folder_that_changes_after_the_plan_is_refused(tmp_path):
    folder = write_images(tmp_path / "other")
    options = TaskOptions(calibration_dir=folder, limit=20)
    path = tmp_path / "s.toml"
    path.write_text(
        SUITE.replace('["training", "psaq-vit", "folder"]', '"folder"').split("[sour")[0]
    )
    run = build_plan(read_suite(path), options)[1]
    check_data(run.spec, Fashion(options))
    write_images(tmp_path / "other" / "more", count=1)
    with pytest.raises(BenchError, match="images of the folder to calibrate on of task fashion"):
        check_data(run.spec, Fashion(options))


def test_a_sweep_over_all_sources(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("suite.toml").write_text(SUITE)
    write_images(folder / "paintings")
    words = ["run", "suite.toml", "--calibration-dir", "paintings", "--workers", "1"]
    assert main([*words, "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "psaq-vit: calibration on 0 real images" in said and "about 6 F" in said
    found = [record for record in records("out").values() if record["spec"]["bits"] == "W4A4"]
    by_source = {}
    for record in found:
        source = record["spec"]["calibration"].get("source", {"name": "training"})
        by_source.setdefault(source["name"], {})[record["spec"]["method"]["name"]] = record
    assert set(by_source) == {"training", "psaq-vit", "folder"}
    assert all(set(runs) == {"minmax", "repq-vit"} for runs in by_source.values())
    assert all(record["status"] == "ok" for record in found)
    made = by_source["psaq-vit"]
    assert made["repq-vit"]["seconds"]["shared"] > 0  # what making them took, by the run before
    text = Path("out/leaderboard.md").read_text()
    # Of the tables alone: two methods give no answer to which one to use.
    assert text.count("calibration on psaq-vit steps=2 (0 real images)") == 1
    assert "0 real images, calibration on those made by psaq-vit steps=2" in text
    table = text.split("protocol `equal`\n")[1].split("</details>")[0]
    assert table.count("| minmax ") == table.count("| repq-vit ") == 1
    run_id = made["minmax"]["run_id"]
    assert main(["repeat", run_id, "--results", "out", "--output", "again"]) == 0
    assert "the same on each image" in capsys.readouterr().out
