"""Small data sets as torchvision keeps them on disk: three images to calibrate, two to judge on."""

from __future__ import annotations

import bz2
import csv
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

TRAINING, JUDGED = [1, 0, 1], [0, 1]
"""Labels of the images."""

Writer = Callable[[Path, pytest.MonkeyPatch], None]


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, 24, 20, 3)).save(path)
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def splits(training: str, judged: str) -> Iterator[tuple[str, list[int], int]]:
    """Names of the two splits, their labels, and the number of their first image."""
    yield training, TRAINING, 0
    yield judged, JUDGED, 10


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = datasets.CIFAR10
    _cifar(root, monkeypatch, kind, ("labels", "label_names"), ("data_batch_1", "test_batch"))


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = datasets.CIFAR100
    _cifar(root, monkeypatch, kind, ("fine_labels", "fine_label_names"), ("train", "test"))


def _cifar(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[datasets.CIFAR10],
    keys: tuple[str, str],
    files: tuple[str, str],
) -> None:
    (key, names), (training, judged) = keys, files
    folder = root / kind.base_folder
    folder.mkdir()
    for name, labels, first in splits(training, judged):
        content = {"data": noise(first, len(labels), 3072), key: labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "names").write_bytes(pickle.dumps({names: ["cat", "dog"]}))
    monkeypatch.setattr(kind, "train_list", [[training, md5(folder / training)]])
    monkeypatch.setattr(kind, "test_list", [[judged, md5(folder / judged)]])
    meta = {"filename": "names", "key": names, "md5": md5(folder / "names")}
    monkeypatch.setattr(kind, "meta", meta)


def mnist(name: str) -> Writer:
    return lambda root, monkeypatch: write_mnist(name, root)


def write_mnist(name: str, root: Path, times: int = 1) -> None:
    """Write a data set of MNIST's form below ``root``, with so many times the images."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, few, first in splits("train", "t10k"):
        labels = [*few] * times
        images = noise(first, len(labels), 28, 28)
        for kind, array in (("images", images), ("labels", np.array(labels, dtype=np.uint8))):
            shape = np.array(array.shape, dtype=">u4")
            head = bytes((0, 0, 8, array.ndim)) + shape.tobytes()
            path = folder / f"{split}-{kind}-idx{array.ndim}-ubyte"
            path.write_bytes(head + array.tobytes())


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for split, labels, first in splits("train", "test"):
        path = root / f"{split}_32x32.mat"
        # The digit 0 is labelled 10.
        digits = np.array([[label or 10] for label in labels])
        scipy.io.savemat(path, {"X": noise(first, 32, 32, 3, len(labels)), "y": digits})
        files[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, labels, first in splits("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(noise(first, len(labels), 3, 96, 96).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels))
        files = [[name, md5(folder / name)] for name in (f"{split}_X.bin", f"{split}_y.bin")]
        monkeypatch.setattr(datasets.STL10, f"{split}_list", files)
    (folder / "class_names.txt").write_text("airplane\nbird\n")


def usps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, labels, first in splits("usps.bz2", "usps.t.bz2"):
        pixels = np.random.default_rng(first).uniform(-1, 1, (len(labels), 256))
        lines = [
            " ".join([str(label + 1), *(f"{i + 1}:{value}" for i, value in enumerate(row))])
            for label, row in zip(labels, pixels, strict=True)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def gtsrb(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, label in enumerate(TRAINING):
        saved(root / f"gtsrb/GTSRB/Training/{label:05}/{i:05}.ppm", i)
    with open(root / "gtsrb" / "GT-final_test.csv", "w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Filename", "ClassId"])
        for i, label in enumerate(JUDGED):
            saved(root / f"gtsrb/GTSRB/Final_Test/Images/{i:05}.ppm", 10 + i)
            table.writerow([f"{i:05}.ppm", label])


def food(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "food-101"
    for split, labels, first in splits("train", "test"):
        listed: dict[str, list[str]] = {"pizza": [], "apple_pie": []}
        for i, label in enumerate(labels):
            name = f"{sorted(listed)[label]}/{first + i}"
            listed[name.split("/")[0]].append(name)
            saved(folder / "images" / f"{name}.jpg", first + i)
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for i in range(5):
        saved(folder / "jpg" / f"image_{i + 1:05}.jpg", i)
    ids = {"trnid": [1, 2, 3], "valid": [3], "tstid": [4, 5]}
    scipy.io.savemat(folder / "setid.mat", ids)
    labels = [label + 1 for label in (*TRAINING, *JUDGED)]
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
    files = {
        key: (name, md5(folder / name))
        for key, name in (("setid", "setid.mat"), ("label", "imagelabels.mat"))
    }
    files["image"] = ("102flowers.tgz", "")
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


def textures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split, labels, first in splits("train", "test"):
        names = [f"{('banded', 'woven')[label]}/{first + i}.jpg" for i, label in enumerate(labels)]
        for i, name in enumerate(names):
            saved(folder / "images" / name, first + i)
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names))


def aircraft(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nYak-42\n")
    for split, labels, first in splits("trainval", "test"):
        lines = []
        for i, label in enumerate(labels):
            saved(folder / "images" / f"{first + i:07}.jpg", first + i)
            lines.append(f"{first + i:07} {('707-320', 'Yak-42')[label]}")
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines))


def pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, labels, first in splits("trainval", "test"):
        lines = []
        for i, label in enumerate(labels):
            name = f"{('Abyssinian', 'american_bulldog')[label]}_{first + i}"
            saved(folder / "images" / f"{name}.jpg", first + i)
            lines.append(f"{name} {label + 1} 1 1")
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines))


def cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kinds = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": kinds})
    files = splits("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    for (file, labels, first), images in zip(files, ("cars_train", "cars_test"), strict=True):
        rows = np.zeros(len(labels), dtype=[("fname", object), ("class", object)])
        for i, label in enumerate(labels):
            rows[i] = (saved(folder / images / f"{first + i:05}.jpg", first + i).name, label + 1)
        scipy.io.savemat(folder / file, {"annotations": rows})


def class_folders(training: str, judged: str, names: tuple[str, str], suffix: str) -> Writer:
    def write(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for split, labels, first in splits(training, judged):
            for i, label in enumerate(labels):
                saved(root / split / names[label] / f"{first + i}.{suffix}", first + i)

    return write


WRITERS: dict[str, Writer] = {
    "CIFAR10": cifar,
    "CIFAR100": cifar100,
    "Country211": class_folders("country211/train", "country211/test", ("AD", "ZW"), "jpg"),
    "DTD": textures,
    "FGVCAircraft": aircraft,
    "FashionMNIST": mnist("FashionMNIST"),
    "Flowers102": flowers,
    "Food101": food,
    "GTSRB": gtsrb,
    "Imagenette": class_folders(
        "imagenette2/train", "imagenette2/val", ("n01440764", "n03000684"), "jpeg"
    ),
    "KMNIST": mnist("KMNIST"),
    "MNIST": mnist("MNIST"),
    "OxfordIIITPet": pets,
    "RenderedSST2": class_folders(
        "rendered-sst2/train", "rendered-sst2/test", ("negative", "positive"), "png"
    ),
    "STL10": stl10,
    "SVHN": svhn,
    "StanfordCars": cars,
    "USPS": usps,
}
