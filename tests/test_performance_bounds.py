"""The performance tests fail where a cost is above its limit, and their comparison where nothing holds it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.benchmarks import compare
from tests.benchmarks.bounds import TOLERANCE, hold, limit_of, note_ratio


def finished(seconds):
    """What `note_ratio` reads of a benchmark that has run."""
    return SimpleNamespace(stats=SimpleNamespace(stats=SimpleNamespace(min=seconds)), extra_info={})


def test_a_ratio_above_its_limit_fails_and_is_noted():
    benchmark = finished(2 * 60 * TOLERANCE + 0.1)
    with pytest.raises(AssertionError, match="asked: 60; fails above 75"):
        note_ratio(benchmark, "adalog", 2.0, 60)
    assert benchmark.extra_info["ratio"] == pytest.approx(75.05)
    assert benchmark.extra_info["target"] == 60
    assert note_ratio(finished(2 * 60 * TOLERANCE - 0.1), "adalog", 2.0, 60) < 75
    assert note_ratio(finished(1e6), "noted", 2.0) == 5e5


def test_what_is_known_to_be_missed_is_held_to_what_it_was():
    assert limit_of(60, 512) == TOLERANCE * 512
    assert limit_of(60, 30) == TOLERANCE * 60
    with pytest.raises(AssertionError, match=r"known to be missed by 8\.53 times"):
        hold("apq-vit", 512 * TOLERANCE + 1, 60, 512)
    hold("apq-vit", 512, 60, 512)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Writes a file of pytest-benchmark with ratios of tests, and has the baseline in a folder of its own."""
    monkeypatch.setattr(compare, "BASELINE", tmp_path / "baseline.json")

    def write(**ratios):
        entries = [
            {"fullname": f"tests/benchmarks/{name}", "extra_info": {"ratio": ratio, "target": 5}}
            for name, ratio in ratios.items()
        ]
        path = tmp_path / "new.json"
        path.write_text(json.dumps({"benchmarks": entries}), encoding="utf-8")
        return str(path)

    return write


def test_comparison_fails_on_growth_and_on_a_test_without_a_baseline(measured, capsys):
    assert compare.main([measured(a=2.0)]) == 1
    assert "no baseline" in capsys.readouterr().out
    assert compare.main([measured(a=2.0), "--store"]) == 0
    assert compare.main([measured(a=2.0 * compare.GROWTH - 0.01)]) == 0
    assert compare.main([measured(a=2.0 * compare.GROWTH + 0.01)]) == 1
    assert "grown by 30 %" in capsys.readouterr().out
    assert compare.main([measured(a=2.0, b=1.0)]) == 1


def test_storing_a_part_keeps_the_baselines_of_the_rest(measured):
    compare.main([measured(a=2.0, b=3.0), "--store"])
    compare.main([measured(b=4.0), "--store"])
    stored = json.loads(compare.BASELINE.read_text(encoding="utf-8"))
    assert {name: known["ratio"] for name, known in stored.items()} == {"a": 2.0, "b": 4.0}


def test_no_performance_test_asserts_that_a_ratio_is_above_zero():
    files = sorted((Path(compare.__file__).parent).glob("test_*.py"))
    assert files
    assert [path.name for path in files if "> 0\n" in path.read_text(encoding="utf-8")] == []
