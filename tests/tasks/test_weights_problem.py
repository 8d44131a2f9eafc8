"""Weights that do not fit are refused with the plan, before any run; those that fit are loaded once."""

from __future__ import annotations

import re
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
from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices
from vit_ptq_bench.tasks.storage import kept

MODEL = "vit_tiny_patch16_224"
DEIT = "deit_tiny_patch16_224"


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
    told = f"{checkpoint}: its head has 1000 outputs, the labels are of 3 classes ("
    assert f"error: {MODEL}: {told}" in said and said.count("1000") == 2 and said.count("3 c") == 1
    assert "name its 1000, in the order of the outputs, with --class-map\n" in said


def test_what_does_not_fit_beside_the_head_is_told_first(place, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model(MODEL, depth=11).state_dict(), other)
    said = refused(capsys, "own.toml", "--data-dir", "data", "--checkpoint", str(other))
    assert f"{other} does not fit" in said and "blocks.11" in said and "head" not in said


def test_pretrained_weights_of_other_classes_are_refused_and_not_fetched(place, capsys):
    words = ("own.toml", "--data-dir", "data", "--dry-run")
    assert f"the labels are of 3 classes, but {MODEL} has 1000 outputs" in refused(capsys, *words)
    model = f"{MODEL}.augreg_in21k"
    assert f"{model} has 21843 outputs" in refused(capsys, *words, "--models", model)


def test_a_backbone_without_a_classifier_is_refused_as_such(place, capsys):
    words = ("own.toml", "--data-dir", "data", "--dry-run")
    model = "vit_small_patch14_reg4_dinov2"
    said = refused(capsys, *words, "--models", model)
    way_out = "is a backbone without a classifier: give --checkpoint of one with a head"
    assert f"error: {model} {way_out}" in said and said.count(model) == 1 and "outputs" not in said


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
    assert said is not None and "its head has 3 outputs, the labels are of 2 classes" in said


@pytest.fixture
def tuned(place: Path) -> Path:
    """A DeiT-Tiny of ten classes, in a file that a training script wrote, with an average beside it."""
    state = timm.create_model(DEIT, num_classes=10).state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": wrapped, "state_dict_ema": state, "epoch": 3}, place / "tuned.pth")
    return place / "tuned.pth"


def ten_images(folder: Path, names: list[str]) -> None:
    for part in ("train", "val"):
        for number, name in enumerate(names):
            path = folder / part / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def labels_of(place: Path, labels: list[int]) -> Path:
    """Flat images with these indices, and a file of them."""
    ten_images(place / "flat", ["any"] * len(labels))
    for path in (place / "flat" / "val" / "any").iterdir():
        path.rename(path.parents[1] / path.name)
    (place / "flat" / "val" / "any").rmdir()
    (place / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return place / "labels.txt"


OWN = ("own.toml", "--data-dir", "flat", "--val-labels", "labels.txt", "--checkpoint", "tuned.pth")


def test_the_checkpoint_tells_how_many_classes_indices_are_of(place, tuned, capsys):
    labels_of(place, list(range(10)))
    words = ("run", *OWN, "--models", DEIT, "--dry-run", "--output", "out")
    assert main(list(words)) == 0
    ids = [line.split()[0] for line in capsys.readouterr().out.splitlines() if DEIT in line]
    assert main([*words, "--num-classes", "10"]) == 0
    given = [line.split()[0] for line in capsys.readouterr().out.splitlines() if DEIT in line]
    assert ids[:2] == given[:2] and len(ids) >= 2  # the same runs, whoever tells it
    options = TaskOptions(
        data_dir=place / "flat", val_labels=place / "labels.txt", checkpoint=tuned
    )
    loaded = TASKS.get("imagenet")(options).load_model(DEIT)
    assert loaded.module.num_classes == 10
    assert loaded.notes[0] == (
        f"{DEIT} was built with 10 outputs instead of 1000, as the head of tuned.pth has"
    )


def test_indices_that_the_checkpoint_does_not_have_are_refused_with_the_way_out(
    place, tuned, capsys
):
    labels_of(place, [*range(9), 12])
    said = refused(capsys, *OWN, "--models", DEIT, "--dry-run")
    assert f"label 12, but {DEIT} has 10 outputs, 0 to 9" in said and "--class-map" in said
    labels_of(place, list(range(10)))
    said = refused(capsys, *OWN, "--models", DEIT, "--dry-run", "--num-classes", "12")
    assert "has 10 outputs, --num-classes says 12: leave it out, or say 10" in said


def test_wordnet_folders_of_another_list_are_refused_with_the_class_map(place, tuned, capsys):
    names = list(imagenet_indices())[5:15]
    ten_images(place / "ten", names)
    words = ("own.toml", "--data-dir", "ten", "--checkpoint", "tuned.pth", "--models", DEIT)
    said = refused(capsys, *words, "--dry-run")
    assert "the labels are of 1000 classes (WordNet ids)" in said
    assert "name its 10, in the order of the outputs, with --class-map" in said
    said = refused(capsys, *words, "--dry-run", "--num-classes", "10")
    assert "name 10 classes in the order of the model's outputs with --class-map" in said
    (place / "nine.txt").write_text("\n".join(["n00000001", *names]))
    said = refused(capsys, *words, "--dry-run", "--class-map", "nine.txt")
    assert "--class-map names 11 classes: it has to name all 10" in said
    (place / "map.txt").write_text("\n".join(names))
    more = ("--class-map", "map.txt", "--dry-run", "--output", "out")
    assert main(["run", *words, *more]) == 0
    assert "runs would run" in capsys.readouterr().out


def test_a_number_of_outputs_in_the_arguments_is_named(place, tuned, capsys):
    labels_of(place, list(range(10)))
    (place / "own.toml").write_text(
        f'task = "imagenet"\nmethods = ["minmax"]\nbits = ["W8A8"]\ncalibration_images = 2\n'
        f'[models.{DEIT}]\ncheckpoint = "tuned.pth"\nmodel_args = {{ num_classes = 12 }}\n'
    )
    said = refused(capsys, *OWN[:5], "--dry-run")
    assert "has 10 outputs, model_args say num_classes = 12: leave it out" in said


def test_the_head_is_found_in_a_layout_of_the_original_repository(place):
    labels_of(place, list(range(10)))
    model = "swin_tiny_patch4_window7_224"
    state = timm.create_model(model, num_classes=10).state_dict()
    original = {
        re.sub(
            r"layers\.(\d)\.downsample",
            lambda found: f"layers.{int(found[1]) - 1}.downsample",
            name,
        ).replace("head.fc.", "head."): tensor
        for name, tensor in state.items()
    }
    save_file(original, place / "swin.safetensors")
    options = TaskOptions(
        data_dir=place / "flat",
        val_labels=place / "labels.txt",
        checkpoint=place / "swin.safetensors",
    )
    assert TASKS.get("imagenet")(options).load_model(model).module.num_classes == 10
