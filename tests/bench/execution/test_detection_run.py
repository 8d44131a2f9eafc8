"""Detection through the real command line, on a bundled detector and a few scenes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vit_ptq_bench.bench.cli import main

SUITE = """
name = "detect"
task = "scenes"
models = ["mask_rcnn_swin_mini"]
methods = ["minmax", "repq-vit"]
bits = ["W4A4"]
scopes = ["full", "backbone"]
calibration_images = 4
limit = 12
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detection")
    (folder / "suite.toml").write_text(SUITE)
    command = ["run", str(folder / "suite.toml"), "--output", str(folder / "out")]
    assert main([*command, "--save-models"]) == 0
    return folder


def _records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("runs/**/*.json"))]


def test_scopes_are_part_of_a_result_and_never_share_a_table(swept: Path) -> None:
    found = _records(swept / "out")
    assert len(found) == 5
    by_scope = {
        scope: {r["spec"]["method"]["name"]: r for r in found if r["spec"].get("scope") == scope}
        for scope in ("backbone", "full", None)
    }
    assert by_scope[None].keys() == {"fp32"}
    assert by_scope["full"].keys() == by_scope["backbone"].keys() == {"minmax", "repq-vit"}
    exact = by_scope[None]["fp32"]["metrics"]["box_ap"]
    assert exact > 40
    for runs in by_scope.values():
        for record in runs.values():
            assert set(record["metrics"]) >= {"box_ap", "mask_ap", "box_ap50", "mask_ap_small"}
            low, high = record["intervals"]["box_ap"]
            assert low < high
    for scope in ("backbone", "full"):
        assert by_scope[scope]["minmax"]["metrics"]["box_ap"] < exact - 3
    smaller = by_scope["full"]["repq-vit"]["size_mb"], by_scope["backbone"]["repq-vit"]["size_mb"]
    assert smaller[0] < smaller[1]
    text = (swept / "out" / "leaderboard.md").read_text()
    for scope in ("backbone", "full"):
        whole = "scenes (version 1, 12 images of the evaluation set)"
        title = f"\n## {whole}, protocol `equal`, scope `{scope}`"
        table = text.split(title)[1].split("\n## ")[0]
        assert "mask AP" in table and table.count("| fp32") == 1
        assert table.count("| minmax") == table.count("| repq-vit") == 1


def test_a_saved_detector_gives_the_recorded_figures(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = next(
        r
        for r in _records(swept / "out")
        if r["spec"].get("scope") == "full" and r["spec"]["method"]["name"] == "repq-vit"
    )
    file = swept / "out" / "models" / "scenes" / "mask_rcnn_swin_mini"
    path = file / f"{record['run_id']}.safetensors"
    capsys.readouterr()
    assert main(["evaluate", str(path), "--limit", "12"]) == 0
    printed = dict(re.findall(r"^(\w+) (\d+\.\d\d)", capsys.readouterr().out, re.MULTILINE))
    assert printed["box_ap"] == f"{record['metrics']['box_ap']:.2f}"
    assert printed["mask_ap"] == f"{record['metrics']['mask_ap']:.2f}"


def test_a_second_sweep_gives_the_same_figures(swept: Path) -> None:
    suite = str(swept / "suite.toml")
    again = swept / "again"
    assert main(["run", suite, "--output", str(again), "--methods", "minmax"]) == 0
    first = {r["run_id"]: r["metrics"] for r in _records(swept / "out")}
    for record in _records(again):
        assert record["metrics"] == first[record["run_id"]]


def test_a_scope_that_the_task_lacks_is_refused(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = str(swept / "suite.toml")
    assert main(["run", suite, "--scope", "neck", "--dry-run"]) == 2
    assert "task scenes has scopes backbone, full, not 'neck'" in capsys.readouterr().err
    assert main(["run", "rates-study", "--scope", "full", "--dry-run"]) == 2
    assert "task fashion has no scopes" in capsys.readouterr().err


def test_a_checkpoint_of_something_else_is_refused_before_any_run(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vit_ptq_bench.tasks.storage.model_cards import weights_path

    suite, out = str(swept / "suite.toml"), swept / "wrong"
    wrong = str(weights_path("swin_mini"))
    assert main(["run", suite, "--output", str(out), "--checkpoint", wrong]) == 2
    assert "does not fit MaskRCNN" in capsys.readouterr().err
    assert not _records(out)
