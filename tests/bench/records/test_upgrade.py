"""Older records get the present layout, and a checksum only if nothing speaks against them."""

import json
import shutil
from pathlib import Path

import pytest

from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard

OLD = Path(__file__).with_name("schema_2")
"""A record of the second layout as release 0.1 wrote it, with its outcomes."""


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(OLD, tmp_path / "results")
    return tmp_path / "results"


def test_an_upgraded_folder_says_the_same_with_checksums(folder, capsys):
    before, records = make_leaderboard(folder), Store(folder).records()
    (path,) = Store(folder).files()
    assert json.loads(path.read_text())["schema"] == 2
    assert main(["upgrade", "--results", str(folder)]) == 0
    assert "1 records written anew, 0 were" in capsys.readouterr().out
    assert json.loads(path.read_text())["schema"] == 8
    assert Store(folder).records() == records
    assert make_leaderboard(folder) == before
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert Store(folder).records() == []


def test_a_second_upgrade_changes_nothing(folder, capsys):
    main(["upgrade", "--results", str(folder)])
    (path,) = Store(folder).files()
    first = path.stat().st_mtime_ns
    assert main(["upgrade", "--results", str(folder)]) == 0
    assert "0 records written anew, 1 were" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == first


def test_what_is_not_borne_out_gets_no_checksum(folder, capsys):
    (path,) = Store(folder).files()
    data = json.loads(path.read_text())
    data["metrics"]["top1"] -= 0.5
    path.write_text(json.dumps(data))
    before = path.read_bytes()
    assert main(["upgrade", "--results", str(folder)]) == 1
    assert "its outcomes give" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_an_empty_folder_is_a_user_error(tmp_path, capsys):
    assert main(["upgrade", "--results", str(tmp_path)]) == 2
    assert "holds no records" in capsys.readouterr().err
