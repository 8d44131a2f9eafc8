"""torchvision's data sets: images and labels are those that torchvision itself gives; nothing is fetched."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import datasets

from tests.tasks.classification.test_imagenet import CPU, MODEL, _task
from tests.tasks.classification.torchvision_files import JUDGED, TRAINING, WRITERS
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.classification.decoding import decoded
from vit_ptq_bench.tasks.classification.sources import source_of
from vit_ptq_bench.tasks.classification.torchvision_sets.names import (
    DESCRIPTIONS,
    torchvision_name,
)
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import read_content


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _source(root: Path, name: str, **options: Any):
    return source_of(root, TaskOptions(data_dir=root, dataset=f"torchvision/{name}", **options))


def test_every_data_set_has_files_here():
    assert list(WRITERS) == list(DESCRIPTIONS)


@pytest.mark.parametrize("name", WRITERS)
def test_images_and_labels_are_torchvisions(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    source = _source(tmp_path, name)
    for found, arguments in (
        (source.training.labelled(), DESCRIPTIONS[name].training),
        (source.judged, DESCRIPTIONS[name].judged),
    ):
        theirs = getattr(datasets, name)(tmp_path, download=False, **arguments)
        assert len(found.samples) == len(theirs)
        for i, (image, label) in enumerate(found.samples):
            pixels, number = theirs[i]
            ours = decoded(image, read_content(image, None))
            assert np.array_equal(np.asarray(ours), np.asarray(pixels.convert("RGB")))
            assert label == (number if name != "Imagenette" else (0, 491)[number])
    assert sorted(label for _, label in source.judged.samples) in (JUDGED, [0, 491])
    assert len(source.training.images) == len(TRAINING)


def test_names_in_any_case_and_what_there_is_otherwise():
    assert torchvision_name("torchvision/cifar10") == "CIFAR10"
    assert torchvision_name("TORCHVISION/Stl10") == "STL10"
    with pytest.raises(TaskError, match="did you mean torchvision/CIFAR10"):
        torchvision_name("CIFAR-10")
    with pytest.raises(TaskError, match="there are torchvision/ with CIFAR10, .*USPS"):
        torchvision_name("torchvision/CelebA")
    with pytest.raises(TaskError, match="give the folder with --data-dir"):
        torchvision_name("torchvision/")


def test_a_sweep_on_cifar_from_disk(tmp_path, monkeypatch, capsys):
    WRITERS["CIFAR10"](tmp_path, monkeypatch)
    torch.manual_seed(0)
    checkpoint = tmp_path / "tuned.safetensors"
    save_file(timm.create_model(MODEL, num_classes=2).state_dict(), checkpoint)
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'task = "imagenet"\nmodels = ["{MODEL}"]\nmethods = ["minmax"]\nbits = ["W8A8"]\n'
        "calibration_images = 2\n"
    )
    command = ["run", str(suite), "--data-dir", str(tmp_path), "--checkpoint", str(checkpoint)]
    command += ["--dataset", "torchvision/CIFAR10", "--executor", "serial"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "2 images in torchvision/CIFAR10 (test): 2 named classes" in said.out + said.err
    capsys.readouterr()
    assert main([*command, "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "0 of 2 runs would run" in capsys.readouterr().out


def test_identities_change_with_the_images_and_not_with_the_place(tmp_path, monkeypatch):
    def identity(root: Path) -> tuple[str, str | None]:
        task = _task(data_dir=root, dataset="torchvision/FashionMNIST")
        return task.data_id(), task.calibration_id(3, 0)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        WRITERS["FashionMNIST"](tmp_path / name, monkeypatch)
    data, calibration = identity(tmp_path / "a")
    assert identity(tmp_path / "b") == (data, calibration)
    _darken(tmp_path / "b" / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte")
    assert identity(tmp_path / "b")[0] != data
    assert identity(tmp_path / "b")[1] == calibration
    _darken(tmp_path / "b" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte")
    assert identity(tmp_path / "b")[1] != calibration


def test_an_array_that_changes_after_it_was_planned_is_refused(tmp_path, monkeypatch):
    WRITERS["MNIST"](tmp_path, monkeypatch)
    torch.manual_seed(0)
    checkpoint = tmp_path / "tuned.safetensors"
    save_file(timm.create_model(MODEL, num_classes=10).state_dict(), checkpoint)
    task = _task(data_dir=tmp_path, dataset="torchvision/MNIST", checkpoint=checkpoint)
    loaded = task.load_model(MODEL)
    task.data_id()
    _darken(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte")
    with pytest.raises(TaskError, match=r"ubyte, image 1 was changed while the sweep ran"):
        task.evaluate(loaded.module, loaded, CPU)


def _darken(path: Path) -> None:
    """Make the last image of a file of MNIST's form black."""
    content = path.read_bytes()
    path.write_bytes(content[:-784] + bytes(784))


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "STL10", "Flowers102"])
def test_files_are_held_against_torchvisions_checksums(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    where = {"CIFAR10": "cifar-10-batches-py/data_batch_1", "SVHN": "train_32x32.mat"}
    where |= {"STL10": "stl10_binary/train_X.bin", "Flowers102": "flowers-102/setid.mat"}
    path = tmp_path / where[name]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(TaskError, match=f"torchvision finds no whole {name} there"):
        _ = _source(tmp_path, name).training


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_that_is_not_there_is_said_with_the_way_to_it(name, tmp_path):
    with pytest.raises(TaskError) as refused:
        _ = _source(tmp_path, name).judged
    said = str(refused.value)
    assert f"no whole {name} there" in said and "--data-dir is what torchvision calls root" in said
    assert f"from torchvision.datasets import {name}" in said


def test_damaged_files_and_other_options_are_refused(tmp_path, monkeypatch):
    WRITERS["USPS"](tmp_path, monkeypatch)
    (tmp_path / "usps.bz2").write_bytes(b"no archive")
    with pytest.raises(TaskError, match="training images .*Invalid data stream"):
        _ = _source(tmp_path, "USPS").training
    with pytest.raises(TaskError, match="--val-labels: torchvision/USPS has its own labels"):
        _source(tmp_path, "USPS", val_labels=tmp_path / "x.txt")
    with pytest.raises(TaskError, match="the labels are of 10 classes, but --num-classes is 3"):
        WRITERS["MNIST"](tmp_path, monkeypatch)
        _source(tmp_path, "MNIST").judged.of_classes(3)


def test_a_class_map_gives_the_names_another_order(tmp_path, monkeypatch):
    WRITERS["CIFAR10"](tmp_path, monkeypatch)
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    judged = _source(tmp_path, "CIFAR10", class_map=tmp_path / "map.txt").judged
    assert [label for _, label in judged.samples] == [1 - label for label in JUDGED]
