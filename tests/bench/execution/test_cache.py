"""What runs share: the same results to the bit, within a budget, gone when the sweep is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.bench.toys import run, write_suite
from vit_ptq_bench.bench.execution.cache import CacheFolder
from vit_ptq_bench.bench.records.store import Store

SUITE = """
task = "fashion"
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


def _file_of(folder: Path, key: str = "key") -> Path:
    return folder / f"{key}.safetensors"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _flip_the_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _rewritten(path: Path, **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        kept = (file.metadata() or {}) | metadata
    save_file(load_file(path), path, {name: text for name, text in kept.items() if text})


def _nan_seconds(path: Path) -> None:
    _rewritten(path, seconds="nan")


def _no_layout(path: Path) -> None:
    _rewritten(path, channels_last="")


def _no_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def _other_names(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        kept = file.metadata()
    save_file({f"{name}x": tensor for name, tensor in load_file(path).items()}, path, kept)


def _other_shapes(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        kept = file.metadata()
    save_file({name: tensor.flatten() for name, tensor in load_file(path).items()}, path, kept)


def _of_another_key(path: Path) -> None:
    other = _shared(path.parent)
    other.put("other", {"a": torch.zeros(3, 4)}, seconds=5.0)
    _file_of(path.parent, "other").replace(path)


DAMAGES = [
    _cut,
    _empty,
    _garbage,
    _flip_the_last_bit,
    _nan_seconds,
    _no_layout,
    _no_metadata,
    _other_names,
    _other_shapes,
    _of_another_key,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_counts_as_absent_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    tensors = {"a": torch.randn(3, 4), "scalar": torch.tensor(2.0), "none": torch.zeros(0, 3)}
    _shared(tmp_path).put("key", tensors, seconds=5.0)
    damage(_file_of(tmp_path))
    shared = _shared(tmp_path)
    assert shared.get("key") is None
    assert "shared file key.safetensors is damaged and computed again" in caplog.text
    assert (shared.seconds, shared.peak_mb) == (0.0, 0.0), "nothing was saved"
    shared.put("key", tensors, seconds=5.0)
    found = shared.get("key")
    assert found is not None and torch.equal(found["a"], tensors["a"])
    assert found["scalar"].shape == () and found["none"].shape == (0, 3)


def test_no_flipped_bit_and_no_cut_changes_what_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    _shared(tmp_path).put("key", tensors, seconds=5.0)
    whole = _file_of(tmp_path).read_bytes()
    flipped = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        for place in range(len(whole))
    ]
    for content in flipped + [whole[:length] for length in range(len(whole))]:
        _file_of(tmp_path).write_bytes(content)
        assert _shared(tmp_path).get("key") is None


def test_what_cannot_be_removed_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _shared(tmp_path).put("key", {"a": torch.zeros(3)}, seconds=5.0)
    _a_folder(_file_of(tmp_path))
    assert _shared(tmp_path).get("key") is None
    assert "cannot remove" in caplog.text


def test_files_damaged_during_a_sweep_change_no_result(folder: Path) -> None:
    """The first run of a method leaves what the second reads; in between all of it is damaged."""
    settings = {"parameters.ptq4vit": "rounds = 1", "bits": '["W6A6", "W4A4"]'}
    write_suite(folder, '["ptq4vit"]', **settings)
    assert run("--output", "alone", "--workers", "1", "--share-gb", "0") == 0
    stop = threading.Event()
    damaged: set[str] = set()

    def vandal() -> None:
        while not stop.wait(0.01):
            for path in Path("shared/.cache").glob("*/*.safetensors"):
                if path.name not in damaged:
                    damaged.add(path.name)
                    with path.open("r+b") as file:
                        file.seek(-1, os.SEEK_END)
                        last = file.read(1)
                        file.seek(-1, os.SEEK_END)
                        file.write(bytes([last[0] ^ 64]))

    thread = threading.Thread(target=vandal)
    thread.start()
    try:
        assert run("--output", "shared", "--workers", "1") == 0
    finally:
        stop.set()
        thread.join()
    assert damaged
    logs = "".join(path.read_text() for path in Path("shared/logs").glob("*.log"))
    assert "is damaged and computed again" in logs
    shared, alone = _records("shared"), _records("alone")
    assert {name: r.metrics for name, r in shared.items()} == {
        name: r.metrics for name, r in alone.items()
    }
    outcomes = {name: r.outcomes_sha256 for name, r in alone.items()}
    assert {name: r.outcomes_sha256 for name, r in shared.items()} == outcomes
