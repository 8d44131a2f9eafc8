"""The tour: quantize, keep, export, run in ONNX Runtime, compare, and judge the file in a fresh process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vit_ptq_bench.bench.cli import main

ROOT = Path(__file__).resolve().parents[3]

SUITE = """
task = "fashion"
models = ["vit_mini"]
methods = ["minmax", "repq-vit", "rose-uniform"]
bits = ["W8A8"]
calibration_images = 8
limit = 40
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tour")
    (path / "s.toml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["run", "s.toml", "--save-models"]) == 0
    return path


@pytest.fixture
def models(folder, monkeypatch):
    """Method -> file of its saved model."""
    monkeypatch.chdir(folder)
    found = {}
    for path in Path("output/s/runs").rglob("*.json"):
        record = json.loads(path.read_text())
        file = Path("output/s/models/fashion/vit_mini", path.stem + ".safetensors")
        found[record["spec"]["method"]["name"]] = file
    return found


GUARD = """
import sys


def no_network(event, arguments):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise OSError(f"no network here: {event}")


sys.addaudithook(no_network)
"""


def without_network(*words):
    """Run a Python program in whose process no socket can be made, by whatever library."""
    folder = Path("guard")
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(GUARD)
    paths = os.pathsep.join((str(folder.resolve()), str(ROOT)))
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('localhost', 80))",
        "import socket; socket.socket()",
        "import urllib.request as u; u.urlopen('http://127.0.0.1/')",
    ],
)
def test_the_guard_of_the_tour_keeps_programs_from_the_network(models, program):
    assert "no network here: socket." in without_network("-c", program).stderr


def test_the_tour(models, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    run_id = models["rose-uniform"].stem
    words = ["--results", "output/s", "--output", "m.onnx", "--check", "--limit", "40"]
    assert main(["export", run_id[:8], *words]) == 0
    told = capsys.readouterr()
    assert "100 of 100 sites between QuantizeLinear and DequantizeLinear" in told.out
    rows = {line[:28].strip(): line.split() for line in told.out.splitlines()}
    simulated = float(rows["simulated in torch"][3])
    deployed = next(words for title, words in rows.items() if title.startswith("deployed on ONNX"))
    assert abs(float(deployed[-4]) - simulated) <= 5 and float(deployed[-3]) >= 95
    assert any(title.startswith("FP32 on ONNX Runtime") for title in rows)
    assert "ONNX Runtime static W8A8" in rows and "the same, products only" in rows
    assert all(len(line) <= 80 for line in told.out.splitlines()[-10:])
    alone = models["rose-uniform"].rename("alone.safetensors")
    finished = without_network("-m", "vit_ptq_bench", "evaluate", str(alone), "--limit", "40")
    alone.rename(models["rose-uniform"])
    assert finished.returncode == 0, finished.stderr
    assert re.search(rf"top1 {simulated:.2f} ", finished.stdout)


def test_a_file_in_float64_has_the_predictions_of_the_simulation_in_float64(models, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    words = ["--output", "d.onnx", "--precision", "float64", "--check", "--limit", "40", "--json"]
    assert main(["export", str(models["repq-vit"]), *words, "--agreement", "100"]) == 0
    told = json.loads(capsys.readouterr().out)
    (deployed,) = [row for row in told["comparison"] if row["title"].startswith("deployed on")]
    assert deployed["title"].endswith(", float64")
    assert (deployed["beside"], deployed["alike"]) == ("simulated in float64", 100.0)
    kinds = {(site["integers"], site["reason"]) for site in told["sites"] if not site["stored"]}
    assert kinds == {(None, "QuantizeLinear takes no float64")}
    assert all(site["integers"] == "uint8" for site in told["sites"] if site["stored"])


def test_what_has_no_operator_is_named_and_counted(models, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    assert main(["export", str(models["repq-vit"]), "--json", "--output", "r.onnx"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == Path("r.onnx").stat().st_size
    reasons = {site["reason"] for site in told["sites"] if site["integers"] is None}
    assert reasons == {"the form 'log-sqrt2' has no operator; the nearest that has one: 'uniform'"}


def test_too_few_equal_predictions_fail(models, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    words = ["--output", "m.onnx", "--check", "--limit", "8", "--agreement", "100.5"]
    assert main(["export", str(models["minmax"]), *words]) == 1
    assert (
        "of the predictions are those of the simulated model, fewer than" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--opset", "12"], "operator set 12 cannot be written; give one of 18 to"),
        (["--output", "none/m.onnx"], "give --output a file .onnx in a folder that is there"),
        (["--output", "m.safetensors"], "give --output a file .onnx"),
        (
            ["--precision", "float64", "--openvino"],
            "OpenVINO computes in float32: leave --openvino",
        ),
        (["--size", "32x32"], "--size is for detectors; a classifier takes images of its own size"),
    ],
)
def test_wrong_words_are_refused(models, capsys, words, message):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    assert main(["export", str(models["minmax"]), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", ["32", "0x32", "32x", "32xx32", "-1x32"])
def test_a_size_is_a_height_and_a_width(models, capsys, words):
    with pytest.raises(SystemExit):
        main(["export", str(models["minmax"]), f"--size={words}"])
    assert f"{words!r} is no height and width, like 800x1344" in capsys.readouterr().err


def test_files_that_are_none_are_refused(models, capsys):
    whole = models["minmax"].read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert main(["export", "cut.safetensors"]) == 2
    assert "it may be truncated" in capsys.readouterr().err
    assert main(["export", "none.safetensors"]) == 2
    assert "no such file" in capsys.readouterr().err
    Path("weights.pth").write_bytes(b"weights")
    assert main(["export", "weights.pth"]) == 2
    assert "weights.pth: is no saved quantized model; give the file" in capsys.readouterr().err
    save_file({"weight": torch.zeros(1)}, "weights.safetensors")
    assert main(["export", "weights.safetensors"]) == 2
    assert "`bench run --save-models` keeps such files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["other.safetensors", "gone.safetensors"])
def test_weights_that_the_user_names_for_the_check_must_serve(models, capsys, name):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    save_file(
        {"head.weight": torch.zeros(7, 192), "head.bias": torch.zeros(7)}, "other.safetensors"
    )
    words = ["--check", "--limit", "8", "--checkpoint", name, "--output", "wrong.onnx"]
    assert main(["export", str(models["minmax"]), *words]) == 2
    told = capsys.readouterr().err
    assert name in told and "note: without" not in told


def test_a_run_that_kept_no_model_says_how_to_make_one(models, capsys):
    run_id = models["repq-vit"].stem
    hidden = models["repq-vit"].rename("hidden")
    assert main(["export", run_id, "--results", "output/s"]) == 2
    hidden.rename(models["repq-vit"])
    assert f"bench repeat {run_id} --results output/s --save-models" in capsys.readouterr().err


def test_without_the_extra_the_command_that_installs_it_is_told(models, capsys, monkeypatch):
    from vit_ptq_bench.bench.deployment import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert main(["export", str(models["minmax"])]) == 2
    assert "pip install -c constraints.txt -e '.[onnx]'" in capsys.readouterr().err
