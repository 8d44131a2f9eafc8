"""How large a suite is: counted before it is expanded, said before it starts, planned in linear time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.plan import build_plan, plan_all
from vit_ptq_bench.bench.planning.size import MAX_RUNS, Size
from vit_ptq_bench.bench.planning.suite import Suite, find_suite, read_suite, with_included
from vit_ptq_bench.methods.minmax import MinMax
from vit_ptq_bench.tasks import Task, TaskOptions, register_task

MODELS = 40_000


@pytest.fixture
def asked() -> Counter[str]:
    """Registers a task of many models; returns how often it was asked for what."""
    asked: Counter[str] = Counter()

    class Many(Task):
        name = "many"
        version = 1
        metrics = ("top1",)

        def model_names(self) -> list[str]:
            asked["model_names"] += 1
            return [f"m{number}" for number in range(MODELS)]

        def weights_id(self, model: str) -> str:
            asked["weights_id"] += 1
            return model

        def data_id(self) -> str:
            asked["data_id"] += 1
            return "data"

        def data_notes(self) -> tuple[str, ...]:
            return ("two sentences", "in words")

        load_model = calibration_batches = evaluate = None  # type: ignore[assignment]

    register_task(Many)
    return asked


def suite(**more: object) -> Suite:
    known = {
        "name": "s",
        "task": "many",
        "models": ("m1",),
        "methods": ("minmax",),
        "bits": ("W4A4",),
    }
    return Suite(**(known | more))  # type: ignore[arg-type]


def test_a_suite_of_many_models_asks_for_nothing_twice(
    asked: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: Counter[str] = Counter()
    made = MinMax.bit_table

    def counted(self: MinMax, *arguments: object) -> object:
        tables["made"] += 1
        return made(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MinMax, "bit_table", counted)
    names = [f"m{number}" for number in range(MODELS)]
    path = tmp_path / "s.toml"
    path.write_text(f'task = "many"\nmethods = ["minmax"]\nbits = "W4A4"\nmodels = {names}\n')
    read = read_suite(path)
    assert read.models == tuple(names), "in a moment, though every name is compared with all others"
    few = suite(models=tuple(names[:200]), seeds=(0, 1))
    assert len(build_plan(few, TaskOptions())) == 200 * 3
    assert asked == {"model_names": 1, "weights_id": 200, "data_id": 1}
    assert tables["made"] == 1


def test_what_is_too_large_is_refused_before_anything_is_made_of_it(asked: Counter[str]) -> None:
    large = suite(models=("*",), seeds=tuple(range(50_000)))
    with pytest.raises(
        BenchError, match=rf"{MODELS * 50_001} runs: {MODELS} models x .*{MAX_RUNS}"
    ):
        build_plan(large, TaskOptions())
    assert asked["weights_id"] == asked["data_id"] == 0


def test_size_and_notes_are_said_before_the_plan(asked: Counter[str]) -> None:
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        assert asked["weights_id"] == 0

    build_plan(suite(seeds=(1, 2), protocols=("equal", "authors")), TaskOptions(), say)
    assert said == [
        "suite s: 5 runs: 1 model x (1 method x 1 bit width x 2 protocols x 2 seeds + full precision)",
        "many: two sentences",
        "many: in words",
    ]


@pytest.mark.parametrize("name", ["bundled", "quick", "mgrq-ablation"])
def test_the_size_is_the_number_of_runs(name: str) -> None:
    said: list[str] = []
    suites = with_included(read_suite(find_suite(name)))
    options = {one.task: TaskOptions(limit=one.limit) for one in suites}
    runs = plan_all(suites, options, said.append)
    sizes = [int(line.split()[2]) for line in said if line.startswith("suite ")]
    assert sizes == [len(build_plan(one, options[one.task])) for one in suites]
    # Suites on one model have its full-precision run in common, which runs once.
    assert len(runs) == len({run.run_id for run in runs}) <= sum(sizes)


def test_a_run_that_two_suites_have_is_one_run(asked: Counter[str]) -> None:
    first, second = suite(seeds=(0, 1)), suite(name="t", seeds=(1, 2))
    runs = plan_all([first, second], {"many": TaskOptions()})
    assert [run.spec.seed for run in runs] == [0, 0, 1, 2]
    assert len({run.run_id for run in runs}) == 4


def test_a_method_of_a_single_draw_runs_with_the_first_seed_only(asked: Counter[str]) -> None:
    said: list[str] = []
    one = suite(methods=("minmax", "percentile"), seeds=(2, 0, 1), single_draw=("minmax",))
    runs = build_plan(one, TaskOptions(), said.append)
    found = sorted((run.spec.method.name, run.spec.seed) for run in runs if run.reference)
    assert found == [("minmax", 2), ("percentile", 0), ("percentile", 1), ("percentile", 2)]
    assert said[0].startswith("suite s: 5 runs: 1 model x (2 methods x 1 bit width x 1 protocol x ")
    assert "3 seeds (1 with 1) + full precision" in said[0]


def test_a_method_of_a_single_draw_has_to_run(asked: Counter[str]) -> None:
    with pytest.raises(BenchError, match="the suite runs no method 'gptq'"):
        build_plan(suite(single_draw=("gptq",)), TaskOptions())
    narrowed = replace(suite(single_draw=("gptq",)), overridden={"methods": "--methods"})
    build_plan(narrowed, TaskOptions())
    with pytest.raises(BenchError, match="unknown method 'nosuch'"):
        build_plan(replace(narrowed, single_draw=("nosuch",)), TaskOptions())


def test_scopes_count_where_there_are_several() -> None:
    text = str(Size(models=2, methods=1, bits=1, protocols=1, scopes=2, seeds=1))
    assert text == (
        "6 runs: 2 models x (1 method x 1 bit width x 1 protocol x 2 scopes x 1 seed + full precision)"
    )
