"""Sources of calibration images in suites: the identity of runs, and what is refused before any work."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.plan import build_plan
from vit_ptq_bench.bench.planning.suite import Suite, read_suite
from vit_ptq_bench.tasks import TASKS, TaskOptions
from vit_ptq_bench.tasks.errors import TaskError


def write_images(folder, count=6, seed=0):
    """Images of noise in a folder and one below it."""
    (folder / "below").mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if number % 2 else ".") / f"{number}.png")
    return folder


def suite(**more):
    settings = {"name": "s", "task": "fashion", "models": ("vit_mini",), "bits": ("W4A4",)}
    return Suite(**settings | {"methods": ("minmax",), "calibration_images": 4} | more)


def planned(folder=None, said=None, **more):
    """The quantized runs by their source."""
    say = said.append if said is not None else (lambda sentence: None)
    runs = build_plan(suite(**more), TaskOptions(calibration_dir=folder), say)
    return {run.spec.calibration.source_title: run for run in runs if run.reference is not None}


def test_training_images_leave_no_mark_in_the_identity():
    (run,) = planned().values()
    assert run.spec.to_dict()["calibration"] == {"images": 4, "draw": 0}
    assert run.title == "minmax"


def test_each_source_is_a_run_of_its_own(tmp_path):
    folder = write_images(tmp_path / "other")
    runs = planned(folder, calibration=("training", "psaq-vit", "folder"))
    assert len({run.run_id for run in runs.values()}) == 3
    made = runs["psaq-vit"].spec.to_dict()["calibration"]["source"]
    assert made["name"] == "psaq-vit" and made["version"] == 1
    assert made["parameters"]["steps"] == 60 and made["parameters"]["batch"] == 16
    read = next(run for title, run in runs.items() if title.startswith("folder"))
    assert set(read.spec.to_dict()["calibration"]["source"]) == {"name", "data"}
    assert str(tmp_path) not in str(read.spec.to_dict())
    assert read.title.startswith("minmax on folder ")


def test_settings_decide_the_identity_and_stand_in_the_title():
    usual = planned(calibration=("psaq-vit",))
    same = planned(calibration=("psaq-vit",), sources={"psaq-vit": {"steps": 60}})
    other = planned(calibration=("psaq-vit",), sources={"psaq-vit": {"steps": 30, "rate": 1}})
    assert [run.run_id for run in usual.values()] == [run.run_id for run in same.values()]
    assert list(other) == ["psaq-vit steps=30 rate=1.0"]
    assert other.popitem()[1].run_id != usual.popitem()[1].run_id


def test_the_content_of_a_folder_is_its_identity_not_its_place(tmp_path):
    first = write_images(tmp_path / "one")
    shutil.copytree(first, tmp_path / "two")
    other = write_images(tmp_path / "three", seed=1)
    ids = [
        next(iter(planned(folder, calibration=("folder",)).values())).run_id
        for folder in (first, tmp_path / "two", other)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_full_precision_is_one_run_whatever_the_source():
    runs = build_plan(suite(calibration=("training", "psaq-vit")), TaskOptions())
    assert [run.spec.method.name for run in runs] == ["fp32", "minmax", "minmax"]
    assert "source" not in runs[0].spec.to_dict()["calibration"]


def test_the_cost_is_said_before():
    said = []
    planned(said=said, calibration=("psaq-vit",), sources={"psaq-vit": {"steps": 50}})
    assert any("0 real images" in text and "about 150 F" in text for text in said)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"calibration": ("psaq",)}, "calibration: unknown source 'psaq'.*psaq-vit"),
        ({"calibration": ("psaq-vit",), "sources": {"psaq-vit": {"step": 3}}}, "no setting 'step'.*steps"),
        ({"calibration": ("psaq-vit",), "sources": {"psaq-vit": {"steps": 0}}}, "steps must be at least 1"),
        ({"calibration": ("psaq-vit",), "sources": {"psaq-vit": {"rate": "a"}}}, "rate must be float"),
        ({"sources": {"psaq-vit": {"steps": 3}}}, "no calibration = 'psaq-vit'"),
        ({"calibration": ("folder",), "sources": {"folder": {"steps": 3}}}, "only psaq-vit has settings"),
    ],
)  # fmt: skip
def test_wrong_sources_are_refused(more, match):
    with pytest.raises(BenchError, match=match):
        planned(**more)


def test_a_suite_file_names_line_and_key(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'task = "fashion"\nmodels = ["vit_mini"]\nmethods = ["minmax"]\n'
        'calibration = "psaq-vit"\n[sources.psaq-vit]\nsteps = 0\n'
    )
    with pytest.raises(BenchError, match=r"s\.toml:6: sources\.psaq-vit\.steps: .*at least 1"):
        build_plan(read_suite(path), TaskOptions())


def test_folders_that_cannot_serve_are_refused(tmp_path):
    def refused(folder, match):
        with pytest.raises(TaskError, match=match):
            planned(folder, calibration=("folder",))

    refused(None, "give --calibration-dir")
    refused(tmp_path / "gone", "no such folder of calibration images")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    refused(empty, "no images found")
    refused(write_images(tmp_path / "few", count=3), "has 3 images to draw, the run asks for 4")
    broken = write_images(tmp_path / "broken", count=4)
    (broken / "2.png").write_bytes((broken / "2.png").read_bytes()[:60])
    refused(broken, r"2\.png: corrupt or unreadable image")
    odd = write_images(tmp_path / "odd")
    for name in ("a.xyz", "b.xyz"):
        (odd / name).write_text("no image")
    refused(odd, "2 of 8 files in odd left out.*--incomplete")


def test_more_training_images_than_there_are_is_refused_with_the_plan():
    available = TASKS.module_dict["fashion"]().training_images()
    words = f"minmax asks for {available + 1} calibration images, and task fashion has {available} "
    with pytest.raises(BenchError, match=f"{words}.*--calibration-images {available}"):
        planned(calibration_images=available + 1)
    assert len(planned(calibration_images=available)) == 1


@pytest.mark.parametrize("name", ["fashion", "scenes"])
def test_bundled_tasks_have_as_many_training_images_as_they_say(name):
    task = TASKS.module_dict[name]()
    (model, *_) = task.model_names()
    loaded = task.load_model(model)
    available = task.training_images()
    with pytest.raises(TaskError, match=f" has {available} images to draw"):
        task.calibration_batches(loaded, available + 1, 0)


def test_no_training_images_at_all_are_refused_in_the_same_words(monkeypatch):
    monkeypatch.setattr(TASKS.module_dict["fashion"], "training_images", lambda self: 0)
    with pytest.raises(
        BenchError, match="has 0 training images to draw them from; leave minmax out"
    ):
        planned()
