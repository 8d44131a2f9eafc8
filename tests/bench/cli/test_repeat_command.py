"""`bench repeat`: a recorded run again, and what is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.toys import FAKES, run, write_suite
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.planning.repeat import drawn
from vit_ptq_bench.bench.records.record import Record
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


def sample(number: int) -> int:
    words = f"--sample {number} --results {OUTPUT} --plugin {FAKES} --output again"
    return main(["repeat", *words.split()])


def quantized() -> list[Record]:
    return [one for one in Store(OUTPUT).records() if not one.spec.is_reference]


def test_a_sample_of_a_folder_comes_out_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]', bits='["W8A8", "W6A6", "W4A4"]')
    assert run() == 0
    recorded = {one.run_id for one in quantized()}
    assert len(recorded) == 3
    capsys.readouterr()
    assert sample(2) == 0
    again = {one.run_id for one in Store(Path("again")).records() if not one.spec.is_reference}
    assert len(again) == 2
    assert again < recorded
    out = capsys.readouterr().out
    (told,) = (line for line in out.splitlines() if " thread" in line)
    assert told.split()[-6:] == ["2", "2", "0", "0.00", "%", "0.00"]
    # A larger sample of the same folder makes the rest, also where fewer are there than asked for.
    assert sample(9) == 0
    out = capsys.readouterr().out
    assert "runs were in again before" in out
    assert {
        one.run_id for one in Store(Path("again")).records() if not one.spec.is_reference
    } == recorded


def test_other_seeds_draw_other_records(folder: Path) -> None:
    write_suite(folder, '["toy-plain"]', bits='["W8A8", "W6A6", "W4A4", "W3A3"]')
    assert run() == 0
    found = {frozenset(one.run_id for one in drawn(quantized(), 2, seed)) for seed in range(9)}
    assert len(found) > 1
    assert drawn(quantized(), 2, 3) == drawn(quantized()[::-1], 2, 3)


def test_a_sample_tells_which_run_came_out_otherwise_and_on_which_machine_it_was_recorded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_suite(folder, '["toy-plain"]', bits='["W8A8", "W4A4"]')
    assert run() == 0
    store = Store(OUTPUT)
    first, second = quantized()
    outcomes = store.outcomes(first)
    assert outcomes is not None
    outcomes = outcomes.copy()
    outcomes[0] = not outcomes[0]
    machine = {**first.environment, "device_name": "Abacus", "cpu": "Abacus", "threads": 2}
    changed = {first.primary_metric or "": 100 * float(outcomes.mean())}
    store.path(first).unlink()
    store.write(replace(first, environment=machine, metrics=changed), outcomes)
    method = replace(second.spec.method, version=second.spec.method.version + 7)
    store.path(second).unlink()
    store.write(replace(second, spec=replace(second.spec, method=method)), store.outcomes(second))
    capsys.readouterr()
    assert sample(2) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (told,) = (line for line in lines if line[:1] == ["Abacus,"])
    images = len(outcomes)
    points = abs(changed[first.primary_metric or ""] - (first.value or 0))
    assert told == f"Abacus, 2 threads 1 0 0 {100 / images:.2f} % {points:.2f}".split()
    assert [line[-3:] for line in lines if line[:1] == [first.run_id[:8]]] == [
        ["1", "of", str(images)]
    ]
    # Another version of the method is another run.
    (other,) = (line for line in lines if line[-1:] == ["-"] and "toy-plain" in line)
    assert other[-2:] == ["-", "-"]


def test_a_folder_without_a_run_to_repeat_and_a_call_without_a_run_are_user_errors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(1) == 2
    assert "none of 0 records is a quantized run that ended well" in capsys.readouterr().err
    assert main(["repeat"]) == 2
    assert main(["repeat", "0123", "--sample", "1"]) == 2
    assert capsys.readouterr().err.count("name a RUN, or say with --sample") == 2
    assert main(["repeat", "--sample", "0"]) == 2
