"""What the README shows works."""

import re
import sys
from pathlib import Path

import pytest

from vit_ptq_bench.bench.cli import VERBS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _example() -> str:
    return re.search(r"<!-- example: own method -->\n```python\n(.*?)```", README, re.DOTALL)[1]


def test_the_example_method_is_short_and_runs(tmp_path, capfd):
    text = _example()
    assert len(text.splitlines()) < 40
    plugin = tmp_path / "cut_minmax.py"
    plugin.write_text(text, encoding="utf-8")
    command = re.search(r"bench (run quick --plugin .*)", README)[1].split()
    command[command.index("cut_minmax.py")] = str(plugin)
    output = tmp_path / "out"
    status = main([*command, "--limit", "60", "--output", str(output), "--calibration-images", "8"])
    assert status == 0, capfd.readouterr().err
    table = (output / "leaderboard.md").read_text(encoding="utf-8")
    assert "| cut-minmax" in table and "| minmax" in table
    assert len(list(output.glob("runs/fashion/*/*.json"))) == 3


@pytest.mark.parametrize(
    "verb", [verb.__name__.rpartition(".")[2].strip("_").replace("_", "-") for verb in VERBS]
)
def test_every_verb_of_the_table_has_help(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0 and "usage: bench" in capsys.readouterr().out
    assert f"`bench {verb}" in README


def test_every_method_and_suite_is_in_the_readme():
    from vit_ptq_bench.methods.api.registry import METHODS

    for name in METHODS.module_dict:
        if METHODS.get(name).__module__.startswith("vit_ptq_bench.methods."):
            assert f"`{name}`" in README
    for path in (ROOT / "bench" / "suites").glob("*.toml"):
        assert f"`{path.stem}`" in README


def test_python_versions_agree():
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.11,<3.14"' in metadata and "Python 3.11 to 3.13" in README
    assert sys.version_info >= (3, 11)
