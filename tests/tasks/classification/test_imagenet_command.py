"""ImageNet through the real command line: labels as people have them, images that change in a sweep."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vit_ptq_bench.tasks.classification.label_sets import imagenet_indices

ROOT = Path(__file__).resolve().parents[3]
MODEL = "deit_tiny_patch16_224"  # one of those that planning knows without asking timm
IDS = list(imagenet_indices())

SPOILER = """
from pathlib import Path
from vit_ptq_bench.methods import register_method
from vit_ptq_bench.methods.minmax import MinMax

@register_method
class Spoiler(MinMax):
    \"\"\"Changes an evaluation image while it calibrates; size and time stay.\"\"\"

    name = "spoiler"

    def calibrate(self, model, calibration, progress=None):
        import os
        path = next(Path("data/val").glob("*5.JPEG"))
        content, status = bytearray(path.read_bytes()), path.stat()
        content[-20] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        super().calibrate(model, calibration, progress)
"""

SUITE = f"""
task = "imagenet"
models = ["{MODEL}"]
methods = ["spoiler", "minmax"]
bits = ["W8A8"]
protocols = ["equal"]
calibration_images = 2
"""


def _image(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A suite, a plug-in, six flat validation images, three training images, and a model."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "spoiler.py").write_text(SPOILER)
    (folder / "s.toml").write_text(SUITE)
    for i in range(6):
        _image(folder / "data" / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", i)
    for i in range(3):
        _image(folder / "data" / "train" / IDS[i] / f"t{i}.JPEG", 100 + i)
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL).state_dict(), folder / "tiny.safetensors")
    return folder


def _bench(folder, *more, labels="labels.csv"):
    command = [sys.executable, "-m", "vit_ptq_bench", "run", "s.toml", "--plugin", "spoiler.py"]
    command += ["--data-dir", "data", "--val-labels", labels, "--checkpoint", "tiny.safetensors"]
    return subprocess.run(
        [*command, "--share-gb", "0", *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def _predictions(folder):
    module = timm.create_model(MODEL, checkpoint_path=str(folder / "tiny.safetensors")).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(module), is_training=False
    )
    files = sorted((folder / "data" / "val").glob("*.JPEG"))
    with torch.no_grad():
        logits = module(torch.stack([transform(Image.open(file)) for file in files]))
    return [(file.stem, int(label)) for file, label in zip(files, logits.argmax(1), strict=True)]


def test_a_sweep_on_labels_of_kaggle_and_an_image_that_changes(folder):
    rows = ["ImageId,PredictionString"]
    for i, (name, label) in enumerate(_predictions(folder)):
        name_id = IDS[label if i < 3 else (label + 500) % 1000]
        rows.append(f"{name},{name_id} 1 2 3 4 {name_id} 5 6 7 8 ")
    (folder / "labels.csv").write_bytes("\r\n".join(rows).encode("utf-16"))
    (folder / "data" / "val" / "lost.JPEG").symlink_to("nowhere")
    finished = _bench(folder)
    assert finished.returncode == 1 and "Traceback" not in finished.stdout + finished.stderr
    records = {
        record["spec"]["method"]["name"]: record
        for path in folder.glob("output/s/runs/*/*/*.json")
        if (record := json.loads(path.read_text()))
    }
    reference = records["fp32"]
    assert (reference["status"], reference["n"]) == ("ok", 6)
    assert reference["metrics"]["top1"] == 50.0  # as the labels say, whatever their file looks like
    assert reference["data_notes"] == [
        "6 images in val: 6 labels in labels.csv by file name, after a header line, WordNet ids",
        "1 of 7 files in val left out: 1 dangling links (lost.JPEG)",
    ]
    spoiled = records["spoiler"]["error"]["message"]
    assert records["spoiler"]["status"] == "failed"
    assert "00000005.JPEG was changed while the sweep ran" in spoiled
    after = records["minmax"]["error"]["message"]  # the next run finds other images than planned
    assert records["minmax"]["status"] == "failed" and "evaluation images" in after
    assert "3 of 3 runs would run" in _bench(folder, "--dry-run").stdout


def test_labels_that_say_nothing_are_refused_before_anything_runs(folder):
    (folder / "other.csv").write_text("ILSVRC2012_val_00000000.JPEG,tench\n")
    finished = _bench(folder, labels="other.csv")
    assert finished.returncode == 2 and "line 1: the label 'tench'" in finished.stderr
    assert "Traceback" not in finished.stderr and len(finished.stderr.splitlines()) <= 4


def test_a_model_fine_tuned_on_own_classes_runs_on_its_folders(tmp_path):
    """Ten folders with names and a DeiT-Tiny of ten outputs: nothing else is said."""
    names = ["bee", "cat", "dog", "elk", "fox", "gnu", "hen", "jay", "owl", "yak"]
    for i, name in enumerate(names):
        _image(tmp_path / "own" / "train" / name / "t.png", i)
        _image(
            tmp_path / "own" / "val" / name / "v.png", i
        )  # the same picture: full precision is known
    torch.manual_seed(1)
    module = timm.create_model(MODEL, num_classes=10).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(module), is_training=False
    )
    files = [tmp_path / "own" / "val" / name / "v.png" for name in names]
    with torch.no_grad():
        images = torch.stack([transform(Image.open(file)) for file in files])
        features = module.forward_head(module.forward_features(images), pre_logits=True)
        # A head that tells the pictures apart, but for the fourth, which it takes for the first.
        targets = torch.eye(10)[[0, 1, 2, 0, 4, 5, 6, 7, 8, 9]]
        weight = torch.linalg.lstsq(torch.cat([features, torch.ones(10, 1)], 1), targets).solution
        module.head.weight.copy_(weight[:-1].T)
        module.head.bias.copy_(weight[-1])
    torch.save({"model": module.state_dict()}, tmp_path / "tuned.pth")
    (tmp_path / "s.toml").write_text(SUITE.replace('"spoiler", ', ""))
    command = ["run", "s.toml", "--data-dir", "own", "--checkpoint", "tuned.pth", "--save-models"]
    finished = _program(tmp_path, *command)
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("output/s/runs/*/*/*.json")]
    found = {record["spec"]["method"]["name"]: record for record in records}
    assert found["fp32"]["metrics"]["top1"] == 90.0
    assert (
        found["fp32"]["data_notes"][0]
        == "10 images in val: 10 class folders, names in sorted order"
    )
    assert found["minmax"]["metrics"]["top1"] >= 70.0
    _evaluate_alone(tmp_path, found["minmax"])


def _evaluate_alone(folder, record):
    """The file and the images are enough: weights and suite are gone."""
    (file,) = folder.glob(f"output/s/models/*/*/{record['run_id']}.safetensors")
    (folder / "plain").touch()
    assert file.stat().st_mode == (folder / "plain").stat().st_mode
    alone = file.rename(folder / "alone.safetensors")
    (folder / "tuned.pth").unlink()
    finished = _program(folder, "evaluate", alone.name, "--data-dir", "own")
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    assert f"top1 {record['metrics']['top1']:.2f}" in finished.stdout
    card = _program(folder, "show", alone.name)
    assert card.returncode == 0, card.stderr
    for words in (
        f"- run: {record['run_id']}",
        f"- top1: {record['metrics']['top1']:.2f} % on 10 images, simulated",
        f"- network in the file: {MODEL}.fb_in1k of timm",
        "- licence of these weights: not known to the benchmark",
        "- 8 bit uniform, per channel: ",
    ):
        assert words in card.stdout, card.stdout
    assert "head.weight" in card.stdout and "reduction" not in card.stdout


def _program(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "vit_ptq_bench", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def _plan_of(folder, tables):
    (folder / "s.toml").write_text(
        SUITE.replace(f'models = ["{MODEL}"]\n', "").replace('"spoiler", ', "") + tables
    )
    return _program(folder, "run", "s.toml", "--data-dir", "own", "--save-models")


def test_a_model_is_built_with_arguments_of_its_own(tmp_path):
    """Another size, other numbers of outputs and registers: what timm makes of them is what runs."""
    for i, name in enumerate(("cat", "dog", "elk")):
        _image(tmp_path / "own" / "train" / name / "t.png", i)
        _image(tmp_path / "own" / "val" / name / "v.png", 9 + i)
    arguments = {"img_size": 64, "reg_tokens": 2, "num_classes": 3}
    module = timm.create_model(MODEL, **arguments)
    save_file(module.state_dict(), tmp_path / "small.safetensors")
    table = f'\n[models.{MODEL}]\ncheckpoint = "small.safetensors"\n'
    finished = _plan_of(tmp_path, f"{table}model_args = {{ img_size = 64, reg_tokens = 2 }}\n")
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("output/s/runs/*/*/*.json")]
    assert {record["status"] for record in records} == {"ok"}
    (weights,) = {record["spec"]["model"]["weights"] for record in records}
    assert weights.endswith(' {"img_size": 64, "reg_tokens": 2}') and weights.startswith("sha256:")
    transform = timm.data.create_transform((3, 64, 64), crop_pct=0.9, interpolation="bicubic")
    files = sorted((tmp_path / "own" / "val").rglob("*.png"))
    with torch.no_grad():
        logits = module.eval()(torch.stack([transform(Image.open(file)) for file in files]))
    right = (logits.argmax(1) == torch.arange(3)).float().mean() * 100
    (full,) = [r["metrics"]["top1"] for r in records if r["spec"]["method"]["name"] == "fp32"]
    assert full == pytest.approx(float(right))
    (minmax,) = [r for r in records if r["spec"]["method"]["name"] == "minmax"]
    (file,) = tmp_path.glob(f"output/s/models/*/*/{minmax['run_id']}.safetensors")
    alone = _program(tmp_path, "evaluate", str(file), "--data-dir", "own")
    assert alone.returncode == 0 and f"top1 {minmax['metrics']['top1']:.2f}" in alone.stdout
    again = ("repeat", minmax["run_id"], "--results", "output/s", "--data-dir", "own")
    repeated = _program(tmp_path, *again, "--checkpoint", "small.safetensors")
    assert repeated.returncode == 0, repeated.stdout + repeated.stderr
    assert "the same on each image" in repeated.stdout


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("model_args = { depht = 3 }", "timm does not build it with depht = 3"),
        ("model_args = { depth = -1.5 }", "timm does not build it with depth = -1.5"),
        ("model_args = { pretrained = true }", "model_args cannot have pretrained"),
        ('model_args = { checkpoint_path = "x" }', "model_args cannot have checkpoint_path"),
    ],
)
def test_arguments_that_build_nothing_are_refused_before_any_run(tmp_path, table, message):
    _image(tmp_path / "own" / "train" / "cat" / "t.png", 1)
    _image(tmp_path / "own" / "val" / "cat" / "v.png", 1)
    module = timm.create_model(MODEL, num_classes=1)
    save_file(module.state_dict(), tmp_path / "small.safetensors")
    own = f'\n[models.{MODEL}]\ncheckpoint = "small.safetensors"\n{table}\n'
    finished = _plan_of(tmp_path, own)
    assert finished.returncode == 2 and re.search(message, finished.stderr), finished.stderr
    assert "Traceback" not in finished.stderr and not list(tmp_path.glob("output/s/runs"))


def test_a_task_of_other_models_takes_no_arguments(tmp_path):
    (tmp_path / "s.toml").write_text(
        'task = "fashion"\n[models.vit_mini.model_args]\nimg_size = 32\n'
    )
    finished = subprocess.run(
        [sys.executable, "-m", "vit_ptq_bench", "run", "s.toml", "--dry-run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "s.toml:2: models.vit_mini: task fashion takes no model_args" in finished.stderr
