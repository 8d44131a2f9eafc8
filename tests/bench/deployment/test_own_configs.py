"""A saved detector of the user's own config: named by --model, the config and the file are enough."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.small_detectors import small_config, small_detector, write_config
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.scene_rendering import write_scenes

SUITE = """
task = "coco"
models = ["own.py"]
methods = ["minmax"]
bits = ["W8A8"]
calibration_images = 4
"""

CONFIG = "_base_ = ['base.py']\nmarker = open('ran', 'a').write('.')\n"
"""A program: whoever runs it leaves a trace."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a saved detector, its data and its config, and no checkpoint any more."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "data" / "annotations").mkdir(parents=True)
    for part, n in (("val", 4), ("train", 4)):
        path = write_scenes(folder / "data" / part, source_pools()[0], n, seed=n)
        path.rename(folder / "data" / "annotations" / f"{part}.json")
    content = small_config("retinanet_vit")
    state = small_detector(folder, content).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "w.safetensors")
    write_config(folder / "base.py", content)
    (folder / "own.py").write_text(CONFIG)
    (folder / "s.toml").write_text(SUITE)
    words = ["--data-dir", "data", "--checkpoint", "w.safetensors", "--save-models"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "s.toml", *words]) == 0
    (folder / "w.safetensors").unlink()
    return folder


@pytest.fixture
def saved(folder, monkeypatch):
    """The saved model, and the figures of its run."""
    monkeypatch.chdir(folder)
    Path("ran").unlink(missing_ok=True)
    for path in Path("output/s/runs").rglob("*.json"):
        record = json.loads(path.read_text())
        if record["spec"]["method"]["name"] == "minmax":
            return Path("output/s/models/coco/own.py", path.stem + ".safetensors"), record
    raise AssertionError("no run of minmax")


def figures(text):
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)", text, re.M)}


def test_the_file_and_its_config_give_the_figures_of_the_run(saved, capsys):
    file, record = saved
    assert main(["evaluate", str(file), "--data-dir", "data"]) == 2
    assert "if you trust that file, name it: --model own.py" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert main(["evaluate", str(file), "--data-dir", "data", "--model", "own.py"]) == 0
    told = capsys.readouterr()
    expected = {name: value for name, value in record["metrics"].items() if value is not None}
    assert expected["box_ap"] > 0
    found = {name: value for name, value in figures(told.out).items() if name in expected}
    assert found == pytest.approx(expected, abs=5e-3)
    assert not told.err and Path("ran").exists()


def test_a_checkpoint_is_said_to_be_of_no_use(saved, capsys):
    file, _ = saved
    Path("other").write_bytes(b"")
    words = ["--data-dir", "data", "--model", "own.py", "--checkpoint", "other"]
    assert main(["evaluate", str(file), *words]) == 0
    assert "holds all weights: --checkpoint is not used" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["own.py", "base.py"])
def test_a_config_that_was_changed_is_refused_and_not_run(saved, capsys, changed):
    file, _ = saved
    before = Path(changed).read_text()
    Path(changed).write_text(before + "\n# another\n")
    found = main(["evaluate", str(file), "--data-dir", "data", "--model", "own.py"])
    Path(changed).write_text(before)
    assert found == 2
    assert "own.py, or what it inherits from, is not the config that the saved model was made" in (
        capsys.readouterr().err
    )
    assert not Path("ran").exists()


def test_a_config_that_is_not_there_is_refused_in_words(saved, capsys):
    file, _ = saved
    assert main(["evaluate", str(file), "--data-dir", "data", "--model", "gone.py"]) == 2
    assert "gone.py: no such config file" in capsys.readouterr().err


def test_it_is_exported_too_and_only_the_config_that_was_named_is_run(saved, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    file, _ = saved
    assert main(["export", str(file), "--data-dir", "data"]) == 2
    assert "name it: --model own.py" in capsys.readouterr().err
    Path("copy.py").write_text(CONFIG)
    Path("own.py").write_text("open('untrusted', 'w').close()\n")
    words = ["--data-dir", "data", "--model", "copy.py", "--output", "m.onnx", "--check"]
    found = main(["export", str(file), *words, "--agreement", "0", "--limit", "2"])
    Path("own.py").write_text(CONFIG)
    told = capsys.readouterr()
    assert found == 0, told.err
    assert "without full precision and static quantization" in told.err
    assert "copy.py needs its weights: give a file with --checkpoint" in told.err
    assert "deployed on ONNX Runtime" in told.out and Path("ran").exists()
    assert not Path("untrusted").exists()
