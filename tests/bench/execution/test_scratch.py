"""Folders for temporary files: whose are removed, and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vit_ptq_bench.bench.execution import scratch
from vit_ptq_bench.bench.sharing.place import Place, here

DAY = 24 * 3600


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "SHORT", ())
    return tmp_path


def folder_of(base: Path, owner: Place | None, age: float = 0.0) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=scratch.PREFIX, dir=base))
    if owner is not None:
        (folder / scratch.OWNER).write_text(json.dumps(owner.write()))
    at = time.time() - age
    os.utime(folder, (at, at))
    return folder


def test_folders_of_those_that_have_ended_go_and_no_others(base: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    elsewhere = replace(here(), system="another container")
    kept = [
        folder_of(base, here(), 9 * DAY),
        folder_of(base, elsewhere),
        folder_of(base, elsewhere, DAY - 600),
        folder_of(base, None),
    ]
    gone = [
        folder_of(base, replace(here(), pid=process.pid)),
        folder_of(base, replace(here(), began="1")),
        folder_of(base, elsewhere, DAY + 600),
        folder_of(base, None, DAY + 600),
    ]
    scratch.remove_leftovers()
    assert [path.exists() for path in kept] == [True] * 4
    assert [path.exists() for path in gone] == [False] * 4


def test_what_is_no_folder_of_a_sweep_stays(base: Path) -> None:
    link, file = base / f"{scratch.PREFIX}link", base / f"{scratch.PREFIX}file"
    target = base / "target"
    target.mkdir()
    link.symlink_to(target)
    file.touch()
    for path in (file, target):
        os.utime(path, (0, 0))
    scratch.remove_leftovers()
    assert target.is_dir() and link.is_symlink() and file.is_file()
