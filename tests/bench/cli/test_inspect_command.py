"""`bench inspect` through the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.methods.quantization import (
    BitWidth,
    Calibration,
    equal_table,
    inspect_sites,
    minmax_rule,
    propagation_gains,
    wrap_model,
)
from vit_ptq_bench.tasks.fashion import Fashion

FEW = ("--calibration-images", "4")


def inspect(*words: str) -> int:
    return main(["inspect", "fashion", "vit_mini", *FEW, *words])


def data_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert inspect("--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def test_a_line_for_each_site_and_block_in_80_columns(folder, capsys):
    assert inspect() == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    head = lines[3].split()
    assert lines[:3] == [
        "vit_mini (fashion) at W4A4, min-max ranges, each site alone",
        "4 calibration images of draw 0; bit table equal",
        "",
    ]
    assert head == ["site", "mismatch", "precision", "sqnr", "clipped", "asymmetry"]
    end = lines.index("", 5)
    sites = [line.split() for line in lines[5:end]]
    blocks = [line.split() for line in lines[end + 3 :]]
    assert len(sites) == 100 and all(len(row) == 6 for row in sites)
    assert sites[1][0] == "patch_embed.proj.weight" and sites[-1][0] == "head.weight"
    assert [row[0] for row in blocks] == [f"blocks.{i}" for i in range(8)]


def test_the_figures_are_those_of_the_library_on_the_same_images(folder, capsys):
    found = data_of(capsys, "--bits", "W3A6", "--seed", "5")
    task = Fashion()
    loaded = task.load_model("vit_mini")
    images = Calibration(task.calibration_batches(loaded, 4, 5), seed=5)
    model = wrap_model(loaded.module, equal_table(BitWidth.parse("W3A6")))
    expected = inspect_sites(model, images, minmax_rule)
    assert [one["site"] for one in found["sites"]] == [one.site for one in expected]
    for one, other in zip(found["sites"], expected, strict=True):
        for name in ("mismatch", "precision", "sqnr", "clipped", "asymmetry"):
            assert one[name] == pytest.approx(getattr(other, name), rel=1e-3)
    gains = propagation_gains(wrap_model(loaded.module, model.table), images)
    assert [one["gain"] for one in found["segments"]] == pytest.approx(
        [one.gain for one in gains], rel=1e-3
    )
    assert (found["bits"], found["method"], found["seed"]) == ("W3A6", None, 5)


def test_the_same_command_says_the_same_and_another_draw_another(folder, capsys):
    first, second = data_of(capsys), data_of(capsys)
    assert first == second
    assert data_of(capsys, "--seed", "1")["segments"] != first["segments"]


def test_after_a_method(folder, capsys):
    """RepQ-ViT cuts ranges at percentiles and folds channel scales into weights."""
    plain = data_of(capsys)
    found = data_of(capsys, "--method", "repq-vit", "--sites", "*.qkv.input")
    assert found["method"] == "repq-vit"
    mismatch = {one["site"]: one["mismatch"] for one in plain["sites"]}
    assert len(found["sites"]) == 8
    assert any(one["clipped"] > 0 for one in found["sites"])
    assert all(one["mismatch"] < mismatch[one["site"]] for one in found["sites"])


def test_csv_has_the_same_figures(folder, capsys):
    found = data_of(capsys, "--bits", "W4A32")
    assert inspect("--csv", "--bits", "W4A32") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    named = found["sites"] + found["segments"]
    assert len(rows) == len(named)
    for row, one in zip(rows, named, strict=True):
        assert row["name"] == one.get("site", one.get("segment"))
        for name in ("mismatch", "sqnr", "gain"):
            value = one.get(name)
            assert row[name] == ("" if value is None else str(value))


def test_columns_are_chosen(folder, capsys):
    assert inspect("--columns", "sqnr", "--sites", "head.*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["site", "sqnr"]
    assert [line.split()[0] for line in lines[5:]] == ["head.input", "head.weight"]
    assert inspect("--columns", "gain") == 0
    assert "head.weight" not in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_a_chart_that_fetches_nothing(ending, folder, capsys):
    path = folder / f"chart.{ending}"
    assert inspect("--plot", str(path), "--sites", "*.fc2.*", "--columns", "sqnr,gain") == 0
    text = path.read_text(encoding="utf-8")
    assert "blocks.7.mlp.fc2.input" in text and "SQNR" in text
    assert 'src="http' not in text and "<link" not in text


def test_a_detector_in_full(folder, capsys):
    words = ("scenes", "mask_rcnn_swin_mini", "--calibration-images", "2", "--scope", "full")
    assert main(["inspect", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scope"] == "full"
    assert any(one["key"] == "mask_head.input" for one in found["sites"])
    assert {one["kind"] for one in found["segments"]} == {"block", "merge"}


WRONG = {
    "task": (["nosuch", "vit_mini"], "unknown task 'nosuch'"),
    "model": (["fashion", "vit_mino"], "did you mean 'vit_mini'"),
    "method": (["fashion", "vit_mini", "--method", "repqvit"], "did you mean 'repq-vit'"),
    "reference": (["fashion", "vit_mini", "--method", "fp32"], "leave --method out"),
    "bits": (["fashion", "vit_mini", "--bits", "W5"], "write it like W4A4"),
    "scope": (["fashion", "vit_mini", "--scope", "full"], "--scope: task fashion has no scopes"),
    "scope name": (["scenes", "mask_rcnn_swin_mini", "--scope", "ful"], "did you mean 'full'"),
    "images": (["fashion", "vit_mini", "--calibration-images", "0"], "must be at least 1"),
    "column": (["fashion", "vit_mini", "--columns", "sqn"], "did you mean 'sqnr'"),
    "no column": (["fashion", "vit_mini", "--columns", ","], "--columns: the list is empty"),
    "forms": (["fashion", "vit_mini", "--json", "--csv"], "choose one of both"),
    "ending": (["fashion", "vit_mini", "--plot", "x.png"], "must end in .html or .svg"),
    "folder": (["fashion", "vit_mini", "--plot", "no/x.svg"], "no such folder"),
    "device": (["fashion", "vit_mini", "--device", "tpu"], "unknown device 'tpu'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(name, folder, capsys, monkeypatch):
    words, message = WRONG[name]
    monkeypatch.setattr(Fashion, "load_model", None)
    assert main(["inspect", *words]) == 2
    assert message in capsys.readouterr().err


def test_sites_that_are_not_there_are_refused_before_images_are_drawn(folder, capsys, monkeypatch):
    monkeypatch.setattr(Fashion, "calibration_batches", None)
    assert inspect("--sites", "*.fc3.*") == 2
    assert "--sites: no site matches '*.fc3.*'" in capsys.readouterr().err


def test_evaluation_images_are_not_looked_at(folder, capsys, monkeypatch):
    monkeypatch.setattr(Fashion, "evaluate", None)
    assert inspect("--method", "minmax", "--sites", "head.*") == 0


def test_threads_and_seeds_of_the_process_do_not_matter(folder, capsys):
    first = data_of(capsys, "--sites", "head.*")
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float32)
    assert data_of(capsys, "--sites", "head.*") == first
    assert not list(Path().iterdir())
