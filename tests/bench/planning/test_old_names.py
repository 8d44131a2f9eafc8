"""Plug-ins of release 0.1 are found under their old import names, and a user's own folders come first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.toys import ROOT

PLUGIN = """
from methods import Method, MethodError, register_method
from methods.base import NoParameters
from methods.quantization import Calibration, Progress, calibrate_activations, calibrate_weights
from methods.quantization.bits import equal_table
from methods.quantization.quantizers import UniformQuantizer
from methods.quantization.ranges import minmax_rule
import tasks.base
from tasks import Task, register_task

@register_method
class Old(Method):
    name = "old"
    paper = "release 0.1"

    def calibrate(self, model, calibration, progress=None):
        calibrate_weights(model, minmax_rule)
        calibrate_activations(model, calibration, minmax_rule, progress=progress)

assert tasks.base.Task is Task
"""

PROGRAM = """
import sys, warnings
warnings.simplefilter("always")
from vit_ptq_bench.bench.planning import plugins
plugins.load(sys.argv[1:])
import vit_ptq_bench.methods as ours
cls = ours.METHODS.get("old")
assert issubclass(cls, ours.Method)
print(cls.name)
"""


def run_program(
    program: str, folder: Path, *arguments: str, path: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("in_checkout", [False, True])
def test_a_plugin_of_the_last_release_works_and_is_warned_of(
    tmp_path: Path, in_checkout: bool
) -> None:
    plugin = tmp_path / "old.py"
    plugin.write_text(PLUGIN)
    done = run_program(PROGRAM, ROOT if in_checkout else tmp_path, str(plugin))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "old\n"
    assert "import vit_ptq_bench.methods instead of methods" in done.stderr


def test_a_folder_of_the_users_own_comes_first(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("mine = 1\n")
    program = (
        "from vit_ptq_bench.bench.planning import plugins; plugins.load(); "
        "import methods; assert methods.mine == 1; import vit_ptq_bench.methods as m; m.Method"
    )
    done = run_program(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "instead of" not in done.stderr


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    program = (
        "from vit_ptq_bench.bench.planning import plugins; plugins.load(); "
        "import methods.quantization.nothing"
    )
    done = run_program(program, tmp_path)
    assert done.returncode != 0
    assert "methods.quantization.nothing is gone" in done.stderr
