"""Registries find the modules of a package, and one that is broken does not stop the others."""

import sys

import pytest

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry as lookup
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.guests import one_line
from vit_ptq_bench.methods import METHODS
from vit_ptq_bench.registry import Registry

GOOD = """
from {package} import REGISTRY

class Good:
    pass

REGISTRY.add("good", Good)
"""
BROKEN = "import no_such_module_anywhere\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose registry has one good and one broken module, and a sub-package."""
    name = "registry_of_a_test"
    folder = tmp_path / name
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "__init__.py").write_text("raise AssertionError('no module of a class')\n")
    (folder / "__init__.py").write_text(
        "from vit_ptq_bench.registry import Registry\n"
        f"REGISTRY = Registry('toy', {name!r}, ('left_out',))\n"
    )
    (folder / "good.py").write_text(GOOD.format(package=name))
    (folder / "broken.py").write_text(BROKEN)
    (folder / "left_out.py").write_text("raise AssertionError('left out')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_broken_module_is_named_and_does_not_stop_the_others(package):
    registry = __import__(package).REGISTRY
    assert list(registry.module_dict) == ["good"]
    assert registry.broken == {
        "broken": "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    }
    assert registry.get("good").__name__ == "Good" and len(registry) == 1


def test_a_name_is_given_once():
    registry = Registry("toy", "vit_ptq_bench.methods.api")
    registry.add("a", dict)
    with pytest.raises(UserError, match="toy name 'a' is taken by builtins.dict"):
        registry.add("a", list)


def test_a_broken_method_file_is_listed_and_named_to_who_asks_for_it(capsys, monkeypatch):
    monkeypatch.setitem(METHODS.broken, "my_method", "SyntaxError: invalid syntax (line 3)")
    assert main(["list", "methods"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines if line[:1] == ["my_method"]] == [
        ["my_method", "-", "broken", "methods/my_method.py:"]
    ]
    with pytest.raises(BenchError, match=r"'my-method' comes from methods/my_method\.py, which"):
        lookup.method_class("my-method")


def test_an_error_in_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(KeyError()) == "KeyError"
