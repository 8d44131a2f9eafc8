"""The memory in a record: of which phases, and what of a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.bench.samples import make_record
from tests.bench.toys import by_label, run, write_suite
from vit_ptq_bench.bench.execution import run as one_run
from vit_ptq_bench.bench.execution.measure import PeakMemory
from vit_ptq_bench.bench.report.show import describe

HUNGRY = """
import torch

from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.minmax import MinMax


@register_method
class Hungry(MinMax):
    '''Takes 400 MB for each batch once it is calibrated.'''

    name = "hungry"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        model.register_forward_hook(lambda *_: torch.ones(10**8).sum() and None)
"""


class AsOnGpu(PeakMemory):
    """Of this process, but of the phases that count on a GPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.with_evaluation = PeakMemory(torch.device("cuda")).with_evaluation


def test_an_evaluation_counts_on_a_gpu_and_not_on_a_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(folder, '["hungry"]')
    (folder / "hungry.py").write_text(HUNGRY)
    words = ("--executor", "serial", "--plugin", "hungry.py", "--output")
    assert run(*words, "cpu") == 0
    monkeypatch.setattr(one_run, "PeakMemory", AsOnGpu)
    assert run(*words, "gpu") == 0
    peaks = [by_label(name)["toy_a hungry W4A4"]["peak_memory_mb"] for name in ("cpu", "gpu")]
    assert peaks[1] > peaks[0] + 300


def test_of_a_gpu_all_that_torch_holds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1_000_000)
    assert PeakMemory(torch.device("cuda:0")).read() == 3.0


def test_what_the_memory_is_of_is_said() -> None:
    record = make_record()
    assert "512.0 MB while calibrating\n" in describe(record)
    gpu = replace(record, environment={**record.environment, "device": "cuda:0"})
    assert "512.0 MB while calibrating or evaluating\n" in describe(gpu)
