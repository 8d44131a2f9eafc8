"""Plug-ins that end the program, close its output, or answer what they must not, are named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.toys import ROOT
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import plugins
from vit_ptq_bench.guests import GuestError, one_line, watched
from vit_ptq_bench.registry import Registry

TASK = """
from dataclasses import dataclass, field
from vit_ptq_bench.methods import register_method
from vit_ptq_bench.methods.minmax import MinMax
from vit_ptq_bench.tasks import Task, register_task
import os, sys


class Base(Task):
    version = 1
    metrics = ("top1",)

    def model_names(self):
        return ["a"]

    def weights_id(self, model):
        return "weights"

    def data_id(self):
        return "data"

    def load_model(self, model):
        return None

    def calibration_batches(self, loaded, n, seed):
        return []

    def evaluate(self, module, loaded, device, progress=None):
        return None


@register_task
class Mine(Base):
    name = "mine"
    #task


@register_method
class MyMethod(MinMax):
    name = "my-method"
    paper = "none"
    #method
"""
SUITE = 'task = "mine"\nmodels = ["*"]\nmethods = ["my-method"]\nbits = ["W4A4"]\n'


def write(task: str = "", method: str = "") -> None:
    Path("p.py").write_text(TASK.replace("#task", task).replace("#method", method))
    Path("s.toml").write_text(SUITE)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vit_ptq_bench", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)", r"p\.py:2: it asked to end the program \(SystemExit: 0\)"),
        ("import os\n\nos._exit(0)", r"p\.py:3: it asked to end the program \(.*os\._exit\(0\)\)"),
        ("import os; os.execv('/bin/true', ['true'])", r"p\.py:1: it asked to end .*os\.execv\(.*"),
        ("import sys; sys.stdout.close()", r"p\.py: it closed the program's stdout"),
        (
            "import os; os.close(1); os.close(2)",
            r"p\.py: it closed the program's stdout and stderr",
        ),
        ("import sys; sys.stderr.close(); 1 / 0", r"p\.py:1: ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_ends_or_silences_the_program_is_named(
    folder: Path, text: str, message: str
) -> None:
    Path("p.py").write_text(text + "\n")
    done = bench("run", "quick", "--dry-run", "--plugin", "p.py")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: plugin .*{message}\n", done.stderr)


def test_what_a_plugin_may_do_with_processes_and_streams(folder: Path) -> None:
    text = (
        "import os, sys\nif os.fork() == 0:\n    os._exit(0)\nos.wait()\nsys.stdout = sys.stderr\n"
    )
    Path("p.py").write_text(text)
    done = bench("list", "suites", "--plugin", "p.py")
    assert (done.returncode, done.stderr) == (0, "")
    done = bench("list", "tasks", "--plugin", "p.py")
    assert done.returncode == 0 and "fashion" in done.stderr, "it wanted its output there"


@pytest.mark.parametrize("ending", ["raise BaseException('odd')", "raise GeneratorExit"])
def test_an_exception_that_passes_every_handler(tmp_path: Path, ending: str) -> None:
    (tmp_path / "p.py").write_text(ending + "\n")
    with pytest.raises(BenchError, match=r"p\.py:1: it asked to end the program \("):
        plugins.load([tmp_path / "p.py"])


def test_a_ctrl_c_stays_one(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        plugins.load([tmp_path / "p.py"])


def test_a_file_of_ours_that_ends_the_program_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_of_guests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ending.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("toy", package.name)
    assert registry.module_dict == {}
    assert registry.broken == {"ending": "it asked to end the program (SystemExit: 0)"}


def installed(folder: Path, group: str, code: str) -> None:
    """A package with one entry point, as an installer leaves it."""
    info = folder / "guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\ntheirs = guest_of_a_test\n")
    (folder / "guest_of_a_test.py").write_text(code + "\n")


ENDS = ("raise SystemExit(0)", "it asked to end the program (SystemExit: 0)")
CLOSES = ("import sys; sys.stdout.close()", "it closed the program's stdout")


@pytest.mark.parametrize(
    ("group", "what", "code", "why"),
    [
        ("vit_ptq_bench.methods", "methods", *ENDS),
        ("vit_ptq_bench.tasks", "tasks", *CLOSES),
        ("vit_ptq_bench.families", "families", *ENDS),
    ],
)
def test_a_package_that_ends_or_silences_the_program_is_listed_as_broken(
    folder: Path, group: str, what: str, code: str, why: str
) -> None:
    installed(folder, group, code)
    # The folder is searched for packages because it is the current one.
    done = bench("list", what)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("theirs"))
    assert "broken" in line and why in line


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        ("data_id = lambda self: None", "", r"mine \(.*p\.py\): data_id\(\) must return a text, not None"),
        ("data_id = lambda self: 1 / 0", "", r"mine \(.*p\.py\): data_id\(\) failed: ZeroDivisionError"),
        ("data_id = lambda self: sys.exit(0)", "", r"data_id\(\) failed: it asked to end the program"),
        ("data_id = lambda self: os._exit(0)", "", r"data_id\(\) failed: it asked to end the program"),
        ("weights_id = lambda self, m: b'x'", "", r"weights_id\(\) must return a text, not b'x'"),
        ("model_names = lambda self: None", "", r"model_names\(\) must return a list of names .* None"),
        ("model_names = lambda self: 'abc'", "", r"model_names\(\) must return a list of names .* 'abc'"),
        ("model_names = lambda self: ['a', 3]", "", r"model_names\(\) must return a list of names"),
        ("model_names = lambda self: ['a b\\n']", "", r"model_names\(\) must return a list of names"),
        ("model_names = lambda self: ['x' * 999]", "", r"model_names\(\) must return a list of names"),
        ("data_notes = lambda self: 'one'", "", r"data_notes\(\) must return a tuple of texts, not 'one'"),
        ("calibration_id = lambda self, n, s: 3", "", r"calibration_id\(\) must return a text or None"),
        ("def __init__(self, o): self.x", "", r"mine \(.*\): making it failed: AttributeError"),
        ("metrics = 'top1'", "", r"p\.py:\d+: TaskError: Mine\.metrics must be a tuple of texts"),
        ("version = '1'", "", r"TaskError: Mine\.version must be a whole number; got '1'"),
        ("scopes = ('all',)", "", r"TaskError: Mine\.scopes must be a tuple of backbone and full"),
        ("small = 1", "", r"TaskError: Mine\.small must be True or False; got 1"),
        ("preload = 'torch'", "", r"TaskError: Mine\.preload must be a tuple"),
        ("metric_titles = ['top1']", "", r"TaskError: Mine\.metric_titles must be a mapping"),
        ("", "bit_table = lambda self, b, p: None", r"my-method \(.*p\.py\): bit_table\(\) must return"),
        ("", "notes = lambda self: 'a note'", r"notes\(\) must return a tuple of texts, not 'a note'"),
        ("", "bit_table = lambda self, b, p: {}[0]", r"bit_table\(\) failed: KeyError: 0"),
        ("", "name = 3", r"MyMethod\.name must be lower-case kebab, like 'repq-vit'; got 3"),
        ("", "paper = 3", r"MyMethod\.paper must say"),
        ("", "version = None", r"MyMethod\.version must be a whole number; got None"),
        ("", "fidelity = 'good'", r"MyMethod\.fidelity must be one of official, "),
        ("", "calibration_images = -1", r"MyMethod\.calibration_images must be a whole number, 0"),
        ("", "note = ('a',)", r"MyMethod\.note must be a text"),
        ("", "schemes = ['x']", r"MyMethod\.schemes must be a mapping"),
        ("", "Parameters = dict", r"MyMethod\.Parameters must be a dataclass; got <class 'dict'>"),
        ("", "@dataclass\n    class Parameters:\n        x: int = 1", r"must be frozen: write"),
        ("", "@dataclass(frozen=True)\n    class Parameters:\n        x: int", r"Parameters\.x needs a"),
        (
            "",
            "@dataclass(frozen=True)\n    class Parameters:\n        x: object = field(default_factory=set)",
            r"MyMethod\.Parameters\.x must have a default that JSON can hold; got set\(\)",
        ),
        (
            "",
            "@dataclass(frozen=True)\n    class Parameters:\n        x: float = float('nan')",
            r"MyMethod\.Parameters\.x must have a default that JSON can hold; got nan",
        ),
        (
            "",
            "@dataclass(frozen=True)\n    class Parameters:\n        transforms: str = ''",
            r"MyMethod\.Parameters\.transforms must be called otherwise: every method has that setting",
        ),
    ],
)  # fmt: skip
def test_odd_answers_and_odd_classes_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], task: str, method: str, message: str
) -> None:
    write(task, method)
    assert main(["run", "s.toml", "--dry-run", "--plugin", "p.py"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_good_plugin_is_planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("data_notes = lambda self: ('2 files left out',)")
    assert main(["run", "s.toml", "--dry-run", "--plugin", "p.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("suite s: 2 runs: 1 model x (1 method x ")
    assert lines[1] == "mine: 2 files left out"
    assert lines[6].startswith("2 of 2 runs would run")
    assert lines[7].startswith("how long it takes is not known")


def test_a_list_shows_the_others_beside_one_that_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("model_names = lambda self: 3", "notes = lambda self: 3")
    assert main(["list", "methods", "--plugin", "p.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len([ln for ln in lines if ln.startswith("my-method") and "notes() must return" in ln]) == 2
    )
    assert any(line.startswith("minmax") for line in lines)
    assert main(["list", "models", "--plugin", "p.py"]) == 0
    out = capsys.readouterr().out
    assert "mine" in out and "model_names() must return" in out and "vit_mini" in out


def test_a_defect_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    from vit_ptq_bench.tasks.fashion import Fashion

    def broken(self: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(Fashion, "data_id", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", "quick", "--dry-run"])


def test_watched_code_gives_back_what_it_took() -> None:
    before = (os._exit, os.execv, os.execve, sys.stdout)
    with pytest.raises(GuestError, match="asked to end"), watched():
        os._exit(0)
    assert before == (os._exit, os.execv, os.execve, sys.stdout)


def test_an_exception_that_cannot_be_told() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Odd()) == "Odd"
