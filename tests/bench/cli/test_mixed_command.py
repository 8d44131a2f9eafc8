"""Sweeps whose bits differ from operation to operation, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.toys import FAKES, by_label, run, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.methods.quantization.bits import ALLOCATION

BITS = '["W4A4", "W4A4:mixed"]'


def test_bits_are_shared_out_told_and_saved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]', bits=BITS)
    assert run("--save-models") == 0
    found = by_label()
    mixed, plain = found["toy_a toy-plain W4A4:mixed"], found["toy_a toy-plain W4A4"]
    assert mixed["status"] == plain["status"] == "ok"
    assert (plain["found_bits"], plain["stored_bits"]) == (
        None,
        {"weight": 4.0, "activation": 4.0},
    )
    assert mixed["found_bits"] and all("@" in key for key in mixed["found_bits"])
    assert 3.5 < mixed["stored_bits"]["weight"] <= 4.0
    assert mixed["spec"]["allocation"] == ALLOCATION and "allocation" not in plain["spec"]
    page = Path("output/toy/leaderboard.md").read_text()
    assert "W4A4:mixed" in page and "bits chosen by operation" in page
    capsys.readouterr()
    saved = Path(f"output/toy/models/toy/toy_a/{mixed['run_id']}.safetensors")
    assert main(["evaluate", str(saved), "--plugin", str(FAKES)]) == 0
    assert f"top1 {mixed['metrics']['top1']:.2f}" in capsys.readouterr().out


def test_what_a_method_chooses_itself_stands_apart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain", "toy-chooser"]')
    assert run("--save-models") == 0
    record = by_label()["toy_a toy-chooser W4A4"]
    assert record["found_bits"] == {"head.input@head": 8}
    assert record["stored_bits"]["activation"] > 4
    assert "W4A4:more" in Path("output/toy/leaderboard.md").read_text()
    capsys.readouterr()
    saved = Path(f"output/toy/models/toy/toy_a/{record['run_id']}.safetensors")
    assert main(["evaluate", str(saved), "--plugin", str(FAKES)]) == 0


@pytest.mark.parametrize(
    "bits, why",
    [
        ("W4A4:mixd", "W4A4:mixed"),
        ("W32A32:mixed", "nothing is quantized"),
        ("W4A4:mixed ", "is not a bit width"),
    ],
)
def test_what_is_no_width_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], bits: str, why: str
) -> None:
    write_suite(folder, '["toy-plain"]', bits=f'["{bits}"]')
    assert run() == 2
    assert why in capsys.readouterr().err
    assert not Path("output").exists()


def test_a_method_without_images_cannot_share_bits_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-blind"]', bits='["W4A4:mixed"]')
    assert run() == 2
    assert "sees no images" in capsys.readouterr().err
