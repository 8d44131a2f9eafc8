"""A dry run names weights that are not on this machine, and refuses devices that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from vit_ptq_bench.tasks.classification.pretrained import is_on_this_machine, place_of
from vit_ptq_bench.tasks.classification.timm_models import weights_source
from vit_ptq_bench.tasks.imagenet import REFERENCES

ROOT = Path(__file__).resolve().parents[2]
NAME = "deit_tiny_patch16_224.fb_in1k"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A suite of a published model, an image of each part, and empty caches."""
    for part in ("train", "val"):
        path = tmp_path / "data" / part / "n01440764" / "a.png"
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "s.toml").write_text(
        f'task = "imagenet"\nmodels = ["{NAME}"]\nmethods = ["minmax"]\nbits = ["W8A8"]\n'
        "calibration_images = 1\n"
    )
    return tmp_path


def bench(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    caches = {"HF_HOME": str(place / "hf"), "TORCH_HOME": str(place / "torch")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TORCH_HOME"))}
    return subprocess.run(
        [sys.executable, "-m", "vit_ptq_bench", "run", "s.toml", "--data-dir", "data", *words],
        cwd=place,
        env=environment | caches | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def cached(place: Path, repository: str, file: str) -> Path:
    """An empty file where the Hub's client keeps what it has fetched."""
    folder = place / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    path = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567" / file
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_a_dry_run_names_weights_that_are_not_here(place: Path) -> None:
    finished = bench(place, "--dry-run")
    assert finished.returncode == 0, finished.stderr
    assert (
        f"weights: those of {NAME} are not on this machine, its first run fetches them from the Hugging Face "
        f"Hub (timm/{NAME})" in finished.stdout
    )
    real = bench(place, "--workers", "1")  # that is what happens where there is no network
    assert real.returncode == 1 and "1 failed" in real.stdout
    cached(place, f"timm/{NAME}", "model.safetensors")
    assert "weights:" not in bench(place, "--dry-run").stdout


def test_a_checkpoint_is_not_fetched(place: Path) -> None:
    from safetensors.torch import save_file

    save_file(timm.create_model(NAME).state_dict(), place / "own.safetensors")
    finished = bench(place, "--dry-run", "--checkpoint", "own.safetensors")
    assert finished.returncode == 0 and "weights:" not in finished.stdout, finished.stderr


def test_a_model_without_published_weights_is_refused(place: Path) -> None:
    finished = bench(place, "--dry-run", "--models", "vit_base_patch16_gap_224")
    assert finished.returncode == 2
    assert "timm has no pretrained weights of it; give a file with --checkpoint" in finished.stderr


def test_sources_are_those_of_timm() -> None:
    assert {name: weights_source(name) for name in REFERENCES} == {
        name: f"hf-hub:timm/{name}" for name in REFERENCES
    }
    assert weights_source("vit_base_patch16_18x2_224") == ""


def test_caches_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    assert not is_on_this_machine("hf-hub:timm/old")
    cached(tmp_path, "timm/old", "pytorch_model.bin")
    assert is_on_this_machine("hf-hub:timm/old")
    assert not is_on_this_machine("hf-hub:timm/old:other.bin")
    cached(tmp_path, "timm/named", "other.safetensors")
    assert is_on_this_machine("hf-hub:timm/named:other.bin")
    assert not is_on_this_machine("hf-hub:timm/named@v2:other.bin")  # of another revision
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    address = "https://example.org/models/tiny-0123.pth?download=1"
    assert not is_on_this_machine(address) and place_of(address) == address
    file = tmp_path / "torch" / "hub" / "checkpoints" / "tiny-0123.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert is_on_this_machine(address)
    assert is_on_this_machine(str(file)) and not is_on_this_machine(str(tmp_path / "none.pth"))


def test_a_dry_run_refuses_devices_as_the_run_does(place: Path) -> None:
    words = ("--models", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "--device", "cuda:7777")
    for dry in (("--dry-run",), ()):
        finished = bench(place, *words, *dry)
        assert finished.returncode == 2 and "would run" not in finished.stdout
        assert "there is no device 'cuda:7777'" in finished.stderr
    misspelled = bench(place, "--device", "gpu0", "--dry-run")
    assert misspelled.returncode == 2 and "unknown device 'gpu0'" in misspelled.stderr
