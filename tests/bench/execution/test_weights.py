"""A checkpoint that is replaced while a sweep runs: no figure of the new weights under the old ones' name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bench.toys import by_label, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.tasks.storage import file_id, weights_path

REPLACES = '''
import os
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.minmax import MinMax

@register_method
class Replaces(MinMax):
    """Puts other weights in the place of the checkpoint, as somebody else may at any time."""

    name = "replaces"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        os.replace("other.safetensors", "own.safetensors")
'''


def test_runs_after_a_replaced_checkpoint_fail_in_words(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(weights_path("vit_mini"))
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    save_file(state, "own.safetensors")
    head = state["module.head.weight"]
    save_file(state | {"module.head.weight": torch.zeros_like(head)}, "other.safetensors")
    first, second = file_id(Path("own.safetensors")), file_id(Path("other.safetensors"))
    Path("replaces.py").write_text(REPLACES)
    write_suite(
        folder,
        '["replaces", "minmax"]',
        task='"fashion"',
        models='["vit_mini"]',
        bits='["W8A8"]',
        limit="20",
        calibration_images="2",
    )
    options = ["--plugin", "replaces.py", "--checkpoint", "own.safetensors", "--workers", "1"]
    assert main(["run", "toy.toml", *options]) == 1
    found = by_label()
    assert {record["spec"]["model"]["weights"] for record in found.values()} == {first}
    before = found["vit_mini replaces W8A8"]
    assert before["status"] == "ok" and before["metrics"]["top1"] > 50
    after = found["vit_mini minmax W8A8"]
    assert after["status"] == "failed" and not after["metrics"]
    message = after["error"]["message"]
    assert "the weights of vit_mini were changed while the sweep ran" in message
    assert first in message and second in message
