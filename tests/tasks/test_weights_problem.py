"""Weights that do not fit are refused with the plan, before any run; those that fit are loaded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.storage import kept

MODEL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-Tiny of 1000 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a suite, and three classes of one's own in the folder data."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog", "owl")):
            path = tmp_path / "data" / part / name / f"{number}.png"
            path.parent.mkdir(parents=True)
            pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    (tmp_path / "own.toml").write_text(
        f'task = "imagenet"\nmodels = ["{MODEL}"]\nmethods = ["minmax"]\nbits = ["W8A8"]\n'
        "calibration_images = 2\n"
    )
    return tmp_path


def refused(capsys, *words: str) -> str:
    """What the command says of a sweep that it refuses, having run nothing."""
    assert main(["run", *words, "--output", "out"]) == 2
    assert not list(Path("out").rglob("*.json"))
    return capsys.readouterr().err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_head_of_other_classes_is_refused(place, checkpoint, capsys, dry):
    said = refused(capsys, "own.toml", "--data-dir", "data", "--checkpoint", str(checkpoint), *dry)
    assert f"error: {MODEL}: {checkpoint} does not fit" in said
    assert "head.weight is (1000, 192), the model has (3, 192)" in said
    assert "built with 3 outputs instead of 1000, as the labels say" in said


def test_pretrained_weights_of_other_classes_are_refused_and_not_fetched(place, capsys):
    words = ("own.toml", "--data-dir", "data", "--dry-run")
    assert f"the labels are of 3 classes, but {MODEL} has 1000 outputs" in refused(capsys, *words)
    model = f"{MODEL}.augreg_in21k"
    assert f"{model} has 21843 outputs" in refused(capsys, *words, "--models", model)


def test_a_damaged_checkpoint_is_refused(place, checkpoint, capsys):
    cut = place / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    words = ("own.toml", "--data-dir", "data", "--checkpoint", "cut.safetensors")
    assert "may be truncated" in refused(capsys, *words)
    quick = ("quick", "--methods", "minmax", "--models", "vit_mini", "--dry-run")
    assert "may be truncated" in refused(capsys, *quick, "--checkpoint", "cut.safetensors")


def test_bundled_architectures_refuse_weights_of_others(place, checkpoint, capsys):
    quick = ("quick", "--methods", "minmax", "--dry-run")
    words = ("--models", "vit_mini", "--checkpoint", str(checkpoint))
    assert f"{checkpoint} does not fit" in refused(capsys, *quick, *words)
    words = ("--models", "mask_rcnn_swin_mini", "--checkpoint", str(checkpoint))
    assert f"{checkpoint} does not fit" in refused(capsys, *quick, *words)


def test_weights_that_fit_are_loaded_once(place, monkeypatch):
    (place / "kept").mkdir()
    monkeypatch.setattr(kept, "lasting_folder", place / "kept")
    tuned = place / "tuned.safetensors"
    save_file(timm.create_model(MODEL, num_classes=3).state_dict(), tuned)
    loads = []
    kind = TASKS.get("imagenet")
    load_model = kind.load_model

    def counted(task, model):
        loads.append(model)
        return load_model(task, model)

    monkeypatch.setattr(kind, "load_model", counted)

    def problem() -> str | None:
        return kind(TaskOptions(data_dir=place / "data", checkpoint=tuned)).weights_problem(MODEL)

    assert problem() is None and problem() is None
    assert loads == [MODEL]
    for folder in (place / "data" / "train" / "owl", place / "data" / "val" / "owl"):
        folder.rename(folder.with_name("yak"))  # the same images and labels: other names of classes
    assert problem() is None
    for folder in (place / "data" / "train" / "yak", place / "data" / "val" / "yak"):
        (folder / "2.png").unlink()
        folder.rmdir()
    said = problem()
    assert said is not None and "head.bias is (3,), the model has (2,)" in said
