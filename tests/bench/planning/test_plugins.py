"""Methods and tasks from elsewhere."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.bench.toys import FAKES
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import plugins, registry


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


METHOD = """\
from vit_ptq_bench.methods import register_method
from vit_ptq_bench.methods.minmax import MinMax


@register_method
class Mine(MinMax):
    name = "mine"
    paper = "none"
"""


def test_a_file_registers_its_classes_once(tmp_path: Path) -> None:
    path = write(tmp_path, METHOD)
    plugins.load([path, path])
    plugins.load([path])
    assert registry.method_class("mine").name == "mine"
    assert plugins.identities() == [{"file": "mine.py", "sha256": plugins.file_sha256(path)}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", r"mine\.py:1: SyntaxError"),
        ("import json\n\n1 / 0\n", r"mine\.py:3: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", r"mine\.py:1: ModuleNotFoundError: No module named"),
        (METHOD.replace('"mine"', '"minmax"'), r"mine\.py:\d+: MethodError: .*'minmax' is taken"),
        (METHOD.replace('"mine"', '"Mine Own"'), r"mine\.py:\d+: MethodError: .*kebab"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        plugins.load([write(tmp_path, text)])


def test_what_is_not_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="there is no such file"):
        plugins.load([tmp_path / "none.py"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(BenchError, match=r"expected a Python file"):
        plugins.load([tmp_path / "notes.txt"])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed packages: one good, one that cannot be imported."""
    (tmp_path / "good_package.py").write_text(METHOD)
    (tmp_path / "bad_package.py").write_text("raise OSError('no library')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    group = plugins.GROUPS["method"]
    points = [
        EntryPoint("mine", "good_package:Mine", group),
        EntryPoint("theirs", "bad_package:Theirs", group),
    ]

    def entry_points(**wanted: Any) -> list[EntryPoint]:
        return [point for point in points if point.group == wanted["group"]]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


@pytest.mark.usefixtures("installed")
def test_entry_points(capsys: pytest.CaptureFixture[str]) -> None:
    plugins.load()
    assert registry.method_class("mine").name == "mine"
    with pytest.raises(BenchError, match=r"'theirs' comes from entry point 'bad_package:Theirs'"):
        registry.method_class("theirs")
    assert main(["list", "methods"]) == 0
    line = next(ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("theirs"))
    assert "broken" in line
    assert "OSError: no library" in line


def test_lists_show_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    for what, name in (("methods", "toy-plain"), ("tasks", "toy"), ("models", "toy_wrong")):
        assert main(["list", what, "--plugin", str(FAKES)]) == 0
        assert name in capsys.readouterr().out.split()
