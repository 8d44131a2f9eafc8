"""Every command of the documentation is run, page by page and in order, as a reader would type it.

Sweeps that take long are planned (``--dry-run``), those of the pages for beginners are made, on few images.
``tox`` is not called from a test: its environments have to be there, and what is behind ``--`` is run. Of
programs that train or measure for an hour the options are asked for.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.faults.annotations import prepare_coco
from tests.faults.conversions import prepare_voc, prepare_yolo
from tests.tasks.classification.torchvision_files import write_mnist
from vit_ptq_bench.bench.cli import make_parser
from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices

ROOT = Path(__file__).parents[1]
PROGRAMS = ("bench", "tox", "pip", "python", "git")

MADE = ("docs/start.md", "docs/extending.md", "docs/deployment.md")
"""Pages whose sweeps are made; those of all others are planned."""

FEW = ("--limit", "60", "--calibration-images", "8")

FEW_CHECKED = ("--limit", "24")
"""What a runtime's predictions are compared on: in float64 a simulation takes seconds for an image."""

CLASSES = ("n01440764", "n01443537", "n01484850")

TRAINING = 1024
"""Training images to plan with, as many as a method's authors take."""

FLOWERS = (
    *("aster", "clover", "daisy", "iris", "lily"),
    *("orchid", "poppy", "rose", "tulip", "violet"),
)
VIT_TINY = "vit_tiny_patch16_224.safetensors"

TUNED = "tuned.safetensors"
DETECTOR = "mask_rcnn_swin_t.safetensors"
FLOWER_DATA, FLOWER_WEIGHTS = "flowers", "flowers.safetensors"


def pages() -> dict[str, list[str]]:
    """Page -> its commands in order."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {
        path.relative_to(ROOT).as_posix(): commands(path.read_text(encoding="utf-8"))
        for path in paths
    }
    return {page: lines for page, lines in found.items() if lines}


def commands(text: str) -> list[str]:
    """The lines of indented blocks and of fences without a language that call a program."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^(?: {4,}|\$ )(\S.*)$", joined, re.MULTILINE)
    return [line for line in lines if line.split()[0] in PROGRAMS and not line.endswith(":")]


def blocks(page: str) -> dict[str, str]:
    """Title of a marked example -> its text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- example: (.*?) -->\n```\w+\n(.*?)```", text, re.DOTALL))


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _multiply(folder: Path, times: int) -> None:
    """Put so many copies beside each file of a folder."""
    for path in list(folder.iterdir()):
        for number in range(times):
            os.link(path, path.with_stem(f"{path.stem}-{number}"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's two layouts, COCO, VOC and YOLO, each with a handful of images; weights of a ViT-Tiny."""
    folder = tmp_path_factory.mktemp("data")
    for index, name in enumerate(CLASSES):
        for part in ("train", "val"):
            _image(folder / "imagenet" / part / name / f"{part}{index}.JPEG", index)
        _image(folder / "flat" / "val" / f"ILSVRC2012_val_{index:08d}.JPEG", index)
        _image(folder / "flat" / "train" / name / f"t{index}.JPEG", 9 + index)
        for place in (folder / "imagenet" / "train" / name, folder / "flat" / "train" / name):
            _multiply(place, TRAINING // len(CLASSES))
    for index, name in enumerate(FLOWERS):
        _image(folder / FLOWER_DATA / "val" / name / f"v{index}.jpg", index)
        _image(folder / FLOWER_DATA / "train" / name / f"t{index}.jpg", 20 + index)
    lines = [f"ILSVRC2012_val_{i:08d}.JPEG {name}" for i, name in enumerate(CLASSES)]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    (folder / "detection").mkdir()
    detector = prepare_coco(folder / "detection").loaded.module
    _multiply(folder / "detection" / "data" / "train", 32)
    save_file({name: x.clone() for name, x in detector.state_dict().items()}, folder / DETECTOR)
    prepare_voc(folder)
    prepare_yolo(folder)
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), folder / VIT_TINY)
    tuned = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(tuned.state_dict(), folder / TUNED)
    flowers = timm.create_model("deit_tiny_patch16_224", num_classes=len(FLOWERS))
    save_file(flowers.state_dict(), folder / FLOWER_WEIGHTS)
    write_mnist("FashionMNIST", folder / "torchvision", times=TRAINING // 2)
    return folder


def _stored(folder: Path, methods: tuple[str, ...] = ("fp32", "minmax", "repq-vit")) -> None:
    """Put some of the stored records into a folder."""
    for path in sorted((ROOT / "results" / "runs" / "fashion" / "vit_mini").glob("*.json")):
        spec = json.loads(path.read_text(encoding="utf-8"))["spec"]
        if spec["method"]["name"] in methods and spec["bits"] in ("W4A4", "W32A32"):
            target = folder / "runs" / "fashion" / "vit_mini"
            target.mkdir(parents=True, exist_ok=True)
            for one in path.parent.glob(f"{path.stem}.*"):
                shutil.copy(one, target)


def _examples(folder: Path) -> None:
    found = blocks("docs/extending.md")
    (folder / "squares.py").write_text(found["form and method"])
    (folder / "noisy_pictures.py").write_text(found["task"])
    (folder / "noisy.toml").write_text(found["suite of the task"])


def _readme(folder: Path) -> None:
    (folder / "cut_minmax.py").write_text(blocks("README.md")["own method"])


def _detection(folder: Path) -> None:
    suite = (
        'task = "coco"\nmodels = ["mask_rcnn_swin_mini"]\nmethods = ["minmax"]\nbits = ["W4A4"]\n'
    )
    (folder / "suite.toml").write_text(suite)
    weights = {"backbone.norm.weight": torch.ones(3), "backbone.norm.bias": torch.zeros(3)}
    torch.save({"state_dict": weights, "meta": {"epoch": 36}}, folder / "epoch_36.pth")


def _vit_tiny(folder: Path) -> None:
    sample = folder / "imagenet-sample-images"
    first, *others = imagenet_indices()
    _image(sample / f"{first}_thing.JPEG", 0)
    for name in others:
        os.link(sample / f"{first}_thing.JPEG", sample / f"{name}_thing.JPEG")
    suite = 'task = "imagenet"\nmodels = ["vit_tiny_patch16_224"]\nmethods = ["mgrq"]\nbits = ["W4A4"]\n'
    (folder / "suite.toml").write_text(suite)


def _results(folder: Path) -> None:
    shutil.copytree(ROOT / "results", folder / "results")


def _parts(folder: Path) -> None:
    _stored(folder / "first")
    for name in ("part1", "part2", "all"):
        _stored(folder / name)


def _scale(folder: Path) -> None:
    _parts(folder)
    _stored(folder / "shared")
    shutil.copytree(ROOT / "results" / "imagenet-sample", folder / "results" / "imagenet-sample")


def _contributed(folder: Path) -> None:
    _stored(folder / "contributed")


BEFORE: Mapping[str, Callable[[Path], None]] = {
    "README.md": _readme,
    "CONTRIBUTING.md": _results,
    "docs/contributing.md": _contributed,
    "docs/detection.md": _detection,
    "docs/extending.md": _examples,
    "docs/miniature.md": _results,
    "docs/parts.md": _results,
    "docs/published.md": _contributed,
    "docs/scale.md": _scale,
    "docs/vit_tiny.md": _vit_tiny,
}
"""Page -> what has to be there before its first command."""


def words_of(line: str, page: str, folder: Path, data: Path) -> list[list[str]]:
    """What is run for a command of a page: lists of words behind ``python``; none: it was looked at only."""
    line = re.sub(r"\[[^\]]*\]", "", line.partition(" # ")[0])
    program, *words = shlex.split(line)
    if program == "pip":
        _check_pip(words)
        return []
    if program == "tox":
        rest = _checked_tox(words)
        return [_bench(["run", *rest], page, folder, data)] if rest else []
    if program == "git":  # what it would fetch is there
        assert words[0] == "clone" and words[1].startswith("https://github.com/")
        return []
    if program == "python":
        assert words[0] == "-m"
        return [[*words[:2], "--help"]]
    assert program == "bench", f"nothing is known of {program}"
    if words[0] == "follow" and find_spec(words[words.index("--to") + 1]) is None:
        make_parser().parse_args(words)  # the program is an extra that is not here
        return []
    return [_bench(words, page, folder, data)]


def _bench(words: list[str], page: str, folder: Path, data: Path) -> list[str]:
    """The words of a command with places in the place of placeholders."""
    flat = "--val-labels" in words
    places = {
        "DIR": data / ("flat" if flat else "imagenet"),
        "/data/imagenet": data / "imagenet",
        "/data/coco": data / "detection" / "data",
        "LABELS": data / "labels.txt",
        VIT_TINY: data / VIT_TINY,
        TUNED: data / TUNED,
        FLOWER_DATA: data / FLOWER_DATA,
        FLOWER_WEIGHTS: data / FLOWER_WEIGHTS,
        "ROOT": data / "torchvision",
        "FILE": next(folder.glob("first/models/*/*/*.safetensors"), "FILE"),
        "IN": data / words[1],
        "OUT": folder / f"converted-{words[1]}",
    }
    if words[0] == "run":
        places[DETECTOR] = data / DETECTOR
        words = _without_gpu(words)
        words += FEW if page in MADE and "--dry-run" not in words else ["--dry-run"]
    if words[0] == "export" and "--check" in words:
        words = [*words, *FEW_CHECKED]
    named = words[words.index("--results") + 1] if "--results" in words else "first"
    runs = iter(_runs(folder / named))
    return [
        "-m",
        "vit_ptq_bench",
        *(next(runs) if w == "RUN" else str(places.get(w, w)) for w in words),
    ]


def _without_gpu(words: list[str]) -> list[str]:
    if "--device" not in words:
        return list(words)
    at = words.index("--device")
    return [*words[:at], *words[at + 2 :]]


def _runs(folder: Path) -> list[str]:
    """The ids of quantized runs in a folder."""
    found = []
    for path in sorted(folder.glob("runs/*/*/*.json")):
        if json.loads(path.read_text(encoding="utf-8"))["spec"]["bits"] != "W32A32":
            found.append(path.stem)
    return found


def _check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] == "install"
    if words[1:] == ["tox"]:
        return
    assert words[1:4] == ["-c", "constraints.txt", "-e"] and (ROOT / "constraints.txt").is_file()
    extras = re.fullmatch(r"\.(?:\[(.*)\])?", words[4])
    assert extras, words
    assert set(filter(None, (extras[1] or "").split(","))) <= set(project["optional-dependencies"])


def _checked_tox(words: list[str]) -> list[str]:
    """What is behind ``--`` of the environment ``bench``; the environment has to be there."""
    if not words:
        return []
    assert words[0] == "-e"
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    assert f"testenv:{words[1]}" in config
    return words[3:] if words[1] == "bench" else []


def test_commands_are_found():
    found = pages()
    assert "pip install tox" in found["README.md"]
    assert any(line.startswith("bench convert voc") for line in found["docs/detection.md"])
    joined = next(line for line in found["docs/parts.md"] if "parts-imagenet" in line)
    assert "--checkpoint" in joined


@pytest.mark.parametrize("page", sorted(pages()))
def test_the_commands_of_a_page_work(page, data, tmp_path):
    BEFORE.get(page, lambda folder: None)(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    for line in pages()[page]:
        for words in words_of(line, page, tmp_path, data):
            done = subprocess.run(
                [sys.executable, *words],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_example_of_a_family_runs(tmp_path):
    path = tmp_path / "family.py"
    path.write_text(blocks("docs/extending.md")["family"], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "QuantConv2d" in done.stdout
