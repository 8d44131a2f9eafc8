"""Hashes of files: right, kept, made again when a file changes, and held against what is read."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

import pytest

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage import contents
from vit_ptq_bench.tasks.storage.contents import content_ids, read_content


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def make(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.bin" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    time.sleep(1.5 * contents.SETTLED_SECONDS)
    return paths


def make_now(folder: Path) -> list[Path]:
    path = folder / "now.bin"
    path.write_bytes(b"first")
    return [path]


def test_ids_are_the_hashes_of_the_bytes(tmp_path: Path) -> None:
    paths = make(tmp_path, 20)
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert content_ids(paths) == expected
    assert content_ids(paths) == expected


def test_a_second_look_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make(tmp_path, 5)
    first = content_ids(paths)
    monkeypatch.setattr(contents, "_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert content_ids(paths) == first


def test_other_bytes_of_the_same_size_and_time_are_another_content(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    first, times = content_ids([path]), path.stat()
    path.write_bytes(b"\xff" * 1000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_ids([path]) != first


def test_a_file_that_may_still_change_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 3600.0)
    (path,) = make_now(tmp_path)
    state = contents._state(path)
    first = content_ids([path])
    path.write_bytes(b"other")
    monkeypatch.setattr(contents, "_state", lambda _: state)
    assert content_ids([path]) != first


@pytest.mark.parametrize("damage", [b"", b"no database at all, whatever its name says" * 100])
def test_damaged_kept_hashes_are_begun_anew(
    own_folder: Path, tmp_path: Path, damage: bytes
) -> None:
    paths = make(tmp_path, 3)
    first = content_ids(paths)
    (kept,) = own_folder.rglob("contents.sqlite")
    kept.write_bytes(damage)
    assert content_ids(paths) == first
    assert content_ids(paths) == first


def test_a_folder_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    paths = make(tmp_path, 2)
    assert content_ids(paths) == [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gone\.bin: cannot be read"):
        content_ids([tmp_path / "gone.bin"])
    with pytest.raises(TaskError, match=r"gone\.bin: cannot be read"):
        read_content(tmp_path / "gone.bin", None)


def test_reading_refuses_other_bytes(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    (digest,) = content_ids([path])
    assert read_content(path, digest) == path.read_bytes()
    path.write_bytes(b"replaced")
    with pytest.raises(TaskError, match="changed while the sweep ran"):
        read_content(path, digest)
    assert read_content(path, None) == b"replaced"


def test_a_name_of_another_encoding_has_a_content(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.JPEG"))
    path.write_bytes(b"x")
    assert content_ids([path]) == [hashlib.sha256(b"x").hexdigest()]
