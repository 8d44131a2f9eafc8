"""Numbers and names: bounded in one place wherever they stand, and one spelling each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.bench.toys import write_suite
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import environment_name, options_of
from vit_ptq_bench.bench.planning.plan import build_plan
from vit_ptq_bench.bench.planning.settings import RunOptions, resolve_run
from vit_ptq_bench.bench.planning.suite import read_suite
from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods.api.parameters import checked
from vit_ptq_bench.tasks import TaskOptions
from vit_ptq_bench.values import number, out_of_bounds, printable, shown, whole_number

SUITE = """
task = "fashion"
models = ["vit_mini"]
methods = ["mgrq"]
bits = ["W4A4"]
"""
HUGE = str(10**22)


def numbers(cls: type) -> list[str]:
    """Names of the options that are numbers."""
    kinds = (int, float, int | None, float | None)
    return [name for name, kind, _, _ in options_of(cls) if kind in kinds]


@pytest.mark.parametrize(
    "value", ["-1", "nan", "inf", "-inf", "1e999", HUGE, "9" * 5000, "٣", "1_0", "0x1"]
)
@pytest.mark.parametrize(
    "name", [*numbers(RunOptions), *numbers(TaskOptions), "calibration_images"]
)
def test_no_option_takes_a_number_that_nobody_means(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    if name == "timeout" and value == HUGE:
        pytest.skip("seconds, as many as one likes")
    write_suite(folder, '["minmax"]', task='"fashion"', models='["vit_mini"]')
    words: dict[str, Any] = {"suite": "toy.toml"}
    with pytest.raises(BenchError, match=f"^--{name.replace('_', '-')}: (must be|expected) "):
        resolve_run(words | {name: value})
    if name in ("calibration_images", "limit"):  # the suite's
        return
    table, key = ("run", "run") if name in numbers(RunOptions) else ("tasks.fashion", "fashion")
    monkeypatch.setenv(environment_name(key, name), value)
    with pytest.raises(BenchError, match=f"^{environment_name(key, name)}: (must be|expected) "):
        resolve_run(words)
    monkeypatch.delenv(environment_name(key, name))
    Path("bench.toml").write_text(f'[{table}]\n{name} = "{value}"\n', encoding="utf-8")
    with pytest.raises(BenchError, match=rf"^bench\.toml:2: {table}\.{name}: (must be|expected) "):
        resolve_run(words)


@pytest.mark.parametrize("key", ["limit", "calibration_images", "seeds"])
@pytest.mark.parametrize("value", ["-1", HUGE, str(2**32 * 4), "1.0", "true", "nan"])
def test_numbers_of_a_suite(folder: Path, key: str, value: str) -> None:
    write_suite(folder, '["minmax"]', **{key: f"[{value}]" if key == "seeds" else value})
    with pytest.raises(BenchError, match=rf"toy\.toml:5: {key}[.0]*: (must be|expected) "):
        read_suite(Path("toy.toml"))


def all_bounds() -> list[Any]:
    """Every number among the parameters of every method, with a value beyond each bound it has."""
    found = []
    for name, cls in sorted(METHODS.module_dict.items()):
        if not cls.__module__.startswith("vit_ptq_bench.methods."):
            continue  # another test's own
        for field in cls.Parameters.__dataclass_fields__.values():
            if field.type not in ("int", "float", int, float):
                continue
            found += [(name, field.name, value) for value in (-1, 2**63, float("nan"), True, "1")]
    return found


def test_no_parameter_takes_a_number_that_nobody_means() -> None:
    bounds = all_bounds()
    assert len(bounds) > 5 * 50, "of some twenty methods"
    for method, parameter, value in bounds:
        if value == 2**63 and "float" in str(
            METHODS.get(method).Parameters.__annotations__.get(parameter)
        ):
            continue
        with pytest.raises(MethodError, match=rf"{method}\.{parameter} must be") as caught:
            METHODS.get(method).create({parameter: value})
        assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("iterations = -1", "mgrq.iterations must be at least 0, not -1"),
        ("batch_size = 0", "mgrq.batch_size must be at least 1, not 0"),
        ("drop = 1.5", "mgrq.drop must be at most 1, not 1.5"),
        ("temperature = 0", "mgrq.temperature must be more than 0, not 0"),
        ("unit = 3", "mgrq.unit must be one of "),
        ("block = 1", "mgrq.block must be bool; got 1"),
    ],
)
def test_a_parameter_out_of_bounds_is_named_with_its_line(
    tmp_path: Path, settings: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{SUITE}[parameters.mgrq]\n{settings}\n")
    with pytest.raises(BenchError, match=rf"mine\.toml:7: parameters\.mgrq\.\w+: {message}"):
        build_plan(read_suite(path), TaskOptions())


def ids(folder: Path, more: str = "", change: Callable[[str], str] = str) -> set[str]:
    path = folder / "mine.toml"
    path.write_text(change(SUITE) + more, encoding="utf-8")
    return {run.run_id for run in build_plan(read_suite(path), TaskOptions())}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("seeds = [7]", "seeds = 0x7"),
        ("limit = 100", "limit = 1_00"),
        ('protocols = ["equal"]', 'protocols = "equal"'),
        ("[parameters.mgrq]\ndrop = 1", "[parameters.mgrq]\ndrop = 1.0"),
        ("[parameters.mgrq]\nlocal_weight = 0.0", "[parameters.mgrq]\nlocal_weight = -0.0"),
        ("[parameters.mgrq]\nlocal_weight = 3e-1", "[parameters.mgrq]\nlocal_weight = 0.3"),
        ("", '[parameters.mgrq]\nprofile = "fast"'),
    ],
)
def test_two_ways_to_write_a_value_are_one_run(tmp_path: Path, first: str, second: str) -> None:
    assert ids(tmp_path, first + "\n") == ids(tmp_path, second + "\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(
            ("W4A4", text)
            for text in ("W04A4", "W٤A٤", "w4a4", " W4A4", "W4A4 ", "W４A４", "W4A4\\n")
        ),
        *(("vit_mini", text) for text in ("VIT_MINI", " vit_mini", "vit_mini ", "vit＿mini")),
        *(("mgrq", text) for text in ("MGRQ", " mgrq", "mgrq ")),
        *(("fashion", text) for text in ("Fashion", " fashion")),
        ('"mgrq"', '"mgrq", "mgrq"'),
        ('"W4A4"', '"W4A4", "W4A4"'),
    ],
)
def test_a_second_spelling_is_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(BenchError, match=r"mine\.toml:[2-5]: "):
        ids(tmp_path, change=lambda text: text.replace(old, new))


@pytest.mark.parametrize(
    "more", ["seeds = [1, 0x1]", "seeds = [1.0]", "seeds = [true]", 'protocols = ["EQUAL"]']
)
def test_a_second_seed_or_protocol_is_refused(tmp_path: Path, more: str) -> None:
    with pytest.raises(BenchError, match=r"mine\.toml:6: "):
        ids(tmp_path, more + "\n")


def test_a_choice_is_the_very_one_that_is_meant() -> None:
    kind = Literal[1, 2]
    assert checked("m.p", 1, kind, {}) == 1
    for other in (True, 1.0):
        with pytest.raises(MethodError, match="m.p must be one of 1, 2"):
            checked("m.p", other, kind, {})
    assert checked("m.p", None, int | None, {}) is None
    assert repr(checked("m.p", -0.0, float, {})) == "0.0"
    with pytest.raises(MethodError, match=r"m.p must be tuple\[int, \.\.\.\]"):
        checked("m.p", [1], tuple[int, ...], {})
    with pytest.raises(MethodError, match="m.p must be less than 1, not 1"):
        checked("m.p", 1, float, {"less_than": 1})


def test_numbers_in_words() -> None:
    assert [whole_number(t) for t in ("7", "-7", "+07", " 7 ")] == [7, -7, 7, 7]
    assert [whole_number(t) for t in ("٧", "7.0", "1_0", "", "9" * 5000)] == [None] * 5
    assert [number(t) for t in ("7", ".5", "1e-3", "-2.")] == [7.0, 0.5, 1e-3, -2.0]
    assert [number(t) for t in ("٧", "1_0", "", "e5", ".", "0x1p3")] == [None] * 6
    assert out_of_bounds(10**5000, {}) == "must be a number of 64 bits, not <int too large to show>"
    assert out_of_bounds(10**400, {"at_most": 1.5}) is not None
    assert out_of_bounds("text", {"at_least": 1}) is out_of_bounds(True, {"at_least": 2}) is None
    assert shown("x" * 99) == f"'{'x' * 56}..." and printable("a\x1b\n\u202e") == "a\\x1b\n\\u202e"
