"""What surrounds Slurm, with programs of its names in its place: nothing here needs a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.toys import FAKES, by_label, results, run, write_suite
from tests.slurm.programs import Programs
from vit_ptq_bench.bench.cli import main

pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")


@pytest.fixture
def programs(folder: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs") / "bin", monkeypatch)


def test_a_device_is_looked_for_where_the_run_is(
    folder: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    """No machine of a test has a hundredth GPU: the node says so in the record, the login node nothing."""
    write_suite(folder, '["toy-plain"]')
    words = ("--executor", "slurm", "--slurm", "gres=gpu:1", "--device")
    assert run(*words, "cuda:x") == 2
    assert "unknown device 'cuda:x'" in capsys.readouterr().err
    assert not programs.arrays
    assert run(*words, "cuda:99") == 1
    assert "#SBATCH --gres=gpu:1" in programs.arrays[0]
    found = by_label()
    reference = found["toy_a fp32 W32A32"]
    assert reference["status"] == "failed"
    message = reference["error"]["message"]
    assert "there is no device 'cuda:99'" in message and "ask Slurm for more than job 1" in message
    assert message in found["toy_a toy-plain W4A4"]["error"]["message"]


def test_what_failed_is_tried_again_as_a_job(
    folder: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain", "toy-fail"]')
    assert run("--output", "there", "--executor", "serial") == 1
    before = results("there")
    words = ["retry", "there", "--plugin", str(FAKES)]
    assert main([*words, "--slurm", "partition=gpu"]) == 2
    assert "--executor is local" in capsys.readouterr().err
    assert main([*words, "--executor", "slurm", "--slurm", "partition=gpu,time=10"]) == 1
    (array,) = programs.arrays
    assert "#SBATCH --partition=gpu" in array and "#SBATCH --time=10" in array
    assert "now 1 failed" in capsys.readouterr().out
    after = results("there")
    (failed,) = [name for name, record in before.items() if record["status"] == "failed"]
    assert after[failed]["error"]["message"] == "the toy is broken"
    assert {**after, failed: None} == {**before, failed: None}
