"""A model that cannot be saved for want of room: on a full file system, and behind a limit of files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vit_ptq_bench.bench.execution.failures import lack_of_room

ROOT = Path(__file__).parents[3]

SUITE = """
task = "fashion"
models = ["vit_mini"]
methods = ["fp32"]
limit = 8
"""

SENTENCE = "no room for the saved model in {} ({}): free some, or leave out --save-models"

FULL = "mount -t tmpfs -o size=3m none out && {}; status=$?; cat out/runs/fashion/*/*.json; exit $status"
"""The model has 14 MB; the file system goes with the command, so the records are printed."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.toml").write_text(SUITE)
    (tmp_path / "out").mkdir()
    return tmp_path


def command(*words: str) -> list[str]:
    program = [sys.executable, "-m", "vit_ptq_bench", "run", "own.toml", "--output", "out", *words]
    return [*program, "--workers", "1", "--share-gb", "0"]


def said(folder: Path, words: list[str], file_bytes: int = resource.RLIM_INFINITY) -> str:
    """What a sweep whose run failed printed, and its records."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes)),
    )
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    return text + "".join(path.read_text() for path in (folder / "out").rglob("*.json"))


def namespaces() -> bool:
    """Whether an ordinary user may have a file system of their own here."""
    try:
        tried = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@pytest.mark.skipif(not namespaces(), reason="no file systems of one's own (unshare)")
def test_a_full_disk(folder: Path) -> None:
    script = FULL.format(" ".join(command("--save-models")))
    text = said(folder, ["unshare", "-Urm", "sh", "-c", script])
    assert SENTENCE.format("out/models/fashion/vit_mini", "No space left on device") in text


def test_files_that_may_not_become_so_large(folder: Path) -> None:
    text = said(folder, command("--save-models"), 1_000_000)
    assert SENTENCE.format("out/models/fashion/vit_mini", "File too large") in text
    temporary = said(folder, command("--no-save-models"), 1_000_000)
    assert "no room for a temporary file in" in temporary
    assert "(File too large): free some, or set TMPDIR to another folder" in temporary


def test_other_errors_are_not_taken_for_want_of_room() -> None:
    assert lack_of_room(PermissionError(13, "Permission denied")) is None
    assert lack_of_room(RuntimeError("Error while serializing: (os error 13)")) is None
    assert lack_of_room(ValueError("no number")) is None
