"""What runs share: the same results to the bit, within a budget, gone when the sweep is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.toys import run
from vit_ptq_bench.bench.execution.cache import CacheFolder
from vit_ptq_bench.bench.records.store import Store

SUITE = """
task = "digits"
models = ["vit_mini"]
methods = ["ptq4vit", "apq-vit"]
bits = ["W6A6", "W4A4"]
limit = 100
calibration_images = 8

[parameters.ptq4vit]
rounds = 1

[parameters.apq-vit]
rounds = 1
steps = 9
"""


def _shared(folder: Path, budget: int = 10**6) -> CacheFolder:
    return CacheFolder(folder, budget, lambda: 7.5)


def test_what_is_put_comes_back_to_the_bit_with_its_cost(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "images": images}
    maker, reader = _shared(tmp_path / "x"), _shared(tmp_path / "x")
    assert maker.get("key") is None
    maker.put("key", tensors, seconds=100.0)
    found = reader.get("key")
    assert found is not None and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].stride() == tensors[name].stride() for name in tensors)
    assert 99.0 < reader.seconds <= 100.0
    assert (reader.peak_mb, maker.seconds, maker.peak_mb) == (7.5, 0.0, 0.0)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    hundred = {"a": torch.zeros(100, dtype=torch.uint8)}
    shared = _shared(tmp_path, budget=1000)
    for name in ("first", "second", "third"):
        shared.put(name, hundred, seconds=1.0)
        past = time.time_ns() - 10**10
        os.utime(tmp_path / f"{name}.safetensors", ns=(past, past))
    assert shared.get("first") is not None  # used again
    room = {"a": torch.zeros(600, dtype=torch.uint8)}
    shared.put("large", room, seconds=1.0)
    kept = {path.stem for path in tmp_path.iterdir()}
    assert {"first", "large"} <= kept and len(kept) < 4
    shared.put("too large", {"a": torch.zeros(1001, dtype=torch.uint8)}, seconds=1.0)
    assert shared.get("too large") is None


def test_what_no_calibration_pays_for_takes_only_free_room(tmp_path: Path) -> None:
    """A data set larger than the budget, read in order twice, is found as far as it went."""
    shared = _shared(tmp_path, budget=1000)
    image = {"a": torch.zeros(300, dtype=torch.uint8)}
    for _ in range(2):
        for name in "abcde":
            if shared.get(name) is None:
                shared.put(name, image)
    kept = {name for name in "abcde" if name in shared}
    assert "a" in kept and len(kept) < 4
    shared.put("gradients", {"a": torch.zeros(800, dtype=torch.uint8)}, seconds=1.0)
    assert "gradients" in shared


def test_what_other_runs_write_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("vit_ptq_bench.bench.execution.cache.time.monotonic", lambda: clock[0])
    one, other = _shared(tmp_path, budget=1500), _shared(tmp_path, budget=1500)
    image = {"a": torch.zeros(500, dtype=torch.uint8)}
    one.put("first", image)
    other.put("second", image)
    clock[0] += 2.0
    one.put("third", image)
    assert "second" in one and "third" not in one


def test_a_disk_that_takes_nothing_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    shared = _shared(tmp_path / "file" / "folder")
    shared.put("key", {"a": torch.zeros(1)})
    assert "nothing is shared" in caplog.text


def _records(output: str) -> dict[str, Any]:
    return {record.run_id: record for record in Store(Path(output)).records()}


def test_sharing_changes_no_result_and_every_run_costs_what_it_would_alone(folder: Path) -> None:
    Path("toy.toml").write_text(SUITE)
    assert run("--output", "shared", "--workers", "1") == 0
    assert run("--output", "alone", "--workers", "1", "--share-gb", "0") == 0
    shared, alone = _records("shared"), _records("alone")
    assert len(shared) == 5 and shared.keys() == alone.keys()
    for name, record in shared.items():
        assert record.status == "ok"
        assert record.metrics == alone[name].metrics
        assert record.outcomes_sha256 == alone[name].outcomes_sha256
        assert "shared" not in alone[name].seconds
    reused = [r for r in shared.values() if "shared" in r.seconds]
    # Gradients do not depend on the bits: of each method the run that came second found them.
    assert sorted((r.spec.method.name, r.spec.bits) for r in reused) == [
        ("apq-vit", "W4A4"),
        ("ptq4vit", "W4A4"),
    ]
    assert all(0 < r.seconds["shared"] < r.seconds["calibrate"] for r in reused)
    assert not Path("shared/.cache").exists()


def test_a_negative_budget_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("toy.toml").write_text(SUITE)
    assert run("--share-gb", "-1") == 2
    assert "--share-gb: must be at least 0" in capsys.readouterr().err
