"""`bench repeat`: a recorded run again, and what is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.toys import FAKES, run, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.records.store import Store

OUTPUT = Path("output/toy")


def repeat(run_id: str, *arguments: str) -> int:
    return main(["repeat", run_id, "--results", str(OUTPUT), "--plugin", str(FAKES), *arguments])


def test_a_run_comes_out_the_same_under_its_own_id(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run() == 0
    capsys.readouterr()
    plain = next(r for r in Store(OUTPUT).records() if r.spec.method.name == "toy-plain")
    assert repeat(plain.run_id[:8]) == 0
    out = capsys.readouterr().out
    assert "not the same run" not in out
    assert (
        f"recorded {plain.value:.2f} %, repeated {plain.value:.2f} %\nthe same on each image\n"
        in out
    )
    again = Store(Path(f"output/repeat-{plain.run_id}")).records()
    assert {one.spec.method.name for one in again} == {"fp32", "toy-plain"}
    assert plain.run_id in {one.run_id for one in again}


def test_another_figure_is_told_and_is_no_success(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run() == 0
    store = Store(OUTPUT)
    plain = next(r for r in store.records() if r.spec.method.name == "toy-plain")
    store.path(plain).unlink()
    worse = replace(plain, metrics={**plain.metrics, plain.primary_metric or "": 1.0})
    store.write(worse)
    capsys.readouterr()
    assert repeat(plain.run_id) == 1
    assert f"recorded 1.00 %, repeated {plain.value:.2f} %" in capsys.readouterr().out


def test_what_has_changed_since_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_suite(folder, '["toy-plain"]')
    assert run() == 0
    store = Store(OUTPUT)
    plain = next(r for r in store.records() if r.spec.method.name == "toy-plain")
    method = replace(plain.spec.method, version=plain.spec.method.version + 7)
    older = replace(plain, spec=replace(plain.spec, method=method))
    store.write(older, store.outcomes(plain))
    capsys.readouterr()
    repeat(older.run_id)
    version = plain.spec.method.version
    expected = f"not the same run: method.version: {version + 7} in the record, {version} here"
    assert expected in capsys.readouterr().out


def test_an_unknown_run_is_a_user_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat("nosuch") == 2
    assert "begins with 'nosuch'" in capsys.readouterr().err
