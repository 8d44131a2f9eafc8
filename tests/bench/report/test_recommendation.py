"""The smallest row that loses little enough, its interval, and what is said where there is none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from tests.bench.samples import TABLE, make_record
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.outcomes import Outcomes
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.drop import Drop, drop_of
from vit_ptq_bench.bench.report.leaderboard import evidence_of
from vit_ptq_bench.bench.report.recommendation import recommend
from vit_ptq_bench.bench.report.significance import Paired
from vit_ptq_bench.bench.report.standings import Seen
from vit_ptq_bench.bench.report.tables import tables

N = 1000


def right(percent: float) -> Outcomes:
    return np.arange(N) < round(N * percent / 100)


def put(folder: Path, size: float | None, value: float, **how: object) -> Record:
    """Write a record with outcomes on a thousand images."""
    record = replace(make_record(value=value, n=N, **how), size_mb=size)  # type: ignore[arg-type]
    Store(folder).write(record, right(value))
    return record


def full(folder: Path, value: float = 90.0, **how: object) -> Record:
    return put(folder, 32.0, value, method="fp32", bits="W32A32", fidelity="reference", **how)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two methods at two widths; at four bits `good` loses 0.8 points and `bad` 3."""
    full(tmp_path)
    put(tmp_path, 4.0, 89.2, method="good")
    put(tmp_path, 3.99, 87.0, method="bad")
    put(tmp_path, 6.0, 89.9, method="good", bits="W6A6")
    put(tmp_path, 6.01, 90.0, method="bad", bits="W6A6")
    return tmp_path


def test_folders_near_it_that_have_the_model_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    full(Path("results"))
    for folder in ("results/below", "beside"):
        full(Path(folder), model="deit_mini")
    full(Path("results/other"))
    words = ["recommend", "--max-drop", "1", "--model", "deit_mini"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "no record in results is of the model 'deit_mini'" in said
    assert "name a folder that has some: --results results/below or beside\n" in said
    assert main([*words, "--results", "results/other"]) == 2
    assert "--results results/below\n" in capsys.readouterr().err


def test_the_smallest_within_the_drop_is_chosen_and_the_rest_follows(results: Path) -> None:
    found = recommend(results, "vit_mini", 1.0)
    rows = [(one.label, one.place.bits, round(one.drop.points, 2)) for one in found.found]
    assert rows == [("good", "W4A4", 0.8), ("bad", "W6A6", 0.0), ("good", "W6A6", 0.1)]
    assert (found.considered, found.reference.value, found.left_out) == (4, 90.0, ())
    more = recommend(results, "vit_mini", 3.0)  # 3.99 and 4.0 MB are the same to a hundredth
    assert [one.label for one in more.found[:2]] == ["good", "bad"]


def test_of_equal_sizes_and_drops_the_one_that_calibrates_in_less_time_is_chosen(
    tmp_path: Path,
) -> None:
    full(tmp_path)
    put(tmp_path, 4.0, 89.5, method="a")
    record = replace(
        make_record(method="b", value=89.5, n=N), seconds={"calibrate": 0.1}, size_mb=4.01
    )
    Store(tmp_path).write(record, right(89.5))
    assert [one.label for one in recommend(tmp_path, "vit_mini", 1.0).found] == ["b", "a"]


def test_a_row_of_a_class_that_does_not_compare_is_marked_and_its_class_is_said(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLE | {"attention": TABLE["attention"] | {"dynamic": True}}
    name = "a-method-whose-name-is-longer-than-there-is-room-for-beside-the-rest"
    put(results, 1.0, 89.5, method=name, table=table)
    assert main(["recommend", "--model", "vit_mini", "--results", str(results)]) == 0
    told = capsys.readouterr().out
    assert f"{name} † at W4A4" in told
    assert re.search(r"^a-method-.*\.\.\. † +W4A4", told, re.MULTILINE)
    assert max(map(len, told[told.index("\nmethod") :].splitlines())) <= 80
    assert "†: does not compare with the others. `dynamic`: scales of activations" in told
    assert main(["recommend", "--model", "vit_mini", "--results", str(results), "--json"]) == 0
    chosen, others = itemgetter("chosen", "others")(json.loads(capsys.readouterr().out))
    assert (chosen["label"], chosen["classes"]) == (name, ["dynamic"])
    assert all(one["classes"] == [] for one in others)


def test_by_seconds_the_quickest_is_chosen(results: Path) -> None:
    put(results, 9.0, 89.5, method="quick", bits="W8A8")
    quick = make_record(method="quicker", value=89.5, n=N)
    Store(results).write(replace(quick, seconds={"calibrate": 0.1}, size_mb=9.0), right(89.5))
    assert recommend(results, "vit_mini", 1.0, by="seconds").found[0].label == "quicker"


def test_the_drop_is_that_of_the_tables_and_its_interval_that_of_paired_images(
    results: Path,
) -> None:
    store = Store(results)
    (table, _) = tables(store.records(), evidence_of(store))
    chosen = recommend(results, "vit_mini", 1.0).found[0]
    row = next(row for row in table.rows if row.label == "good")
    assert table.reference is not None and table.reference.value is not None
    assert chosen.drop.points == pytest.approx(table.reference.value - (row.value or 0))
    paired = Paired.of(right(90.0), right(89.2))
    low, high = paired.interval
    assert chosen.drop.low == pytest.approx(100 * low)
    assert chosen.drop.high == pytest.approx(100 * high)
    assert chosen.drop.within(1.0) is (100 * high <= 1.0)


def test_seeds_are_one_row_and_an_image_one_unit() -> None:
    rng = np.random.default_rng(0)
    reference, seeds = rng.random(N) < 0.9, [rng.random(N) < 0.85 for _ in range(3)]
    value = 100 * float(np.mean(seeds))
    found = drop_of(Seen(100 * float(reference.mean()), [reference]), Seen(value, seeds))
    apart = reference - np.mean(seeds, axis=0)
    drawn = [apart[rng.integers(0, N, N)].mean() for _ in range(4000)]
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(100 * 2 * 1.96 * np.std(drawn), rel=0.05)
    assert (found.low + found.high) / 2 == pytest.approx(100 * apart.mean())


def test_of_boxes_the_interval_comes_from_drawn_image_sets() -> None:
    rng = np.random.default_rng(1)
    sets, own = rng.normal(0, 1, 200), rng.normal(0, 0.1, 200)
    found = drop_of(Seen(40.0, None, [40 + sets]), Seen(39.5, None, [39.5 + sets + own]))
    half = t.ppf(0.975, 199) * own.std(ddof=1)
    assert found.high == pytest.approx(0.5 + half) and found.low == pytest.approx(0.5 - half)
    assert found.within(1.0) is True and found.within(0.5) is False


@pytest.mark.parametrize(
    "row",
    [Seen(39.0), Seen(39.0, [np.ones(7, bool)]), Seen(39.0, None, [np.ones(5)])],
    ids=["nothing", "other images", "replicates alone"],
)
def test_without_the_same_images_there_is_no_interval(row: Seen) -> None:
    found = drop_of(Seen(40.0, [np.ones(9, bool)]), row)
    assert found == Drop(1.0) and found.within(2.0) is None


def test_a_name_that_is_not_there_gets_the_names_like_it(results: Path) -> None:
    words = "is of the model 'vit_mimi', and none in folders near it; did you mean 'vit_mini'"
    with pytest.raises(BenchError, match=f"{words}.*--results names another folder"):
        recommend(results, "vit_mimi", 1.0)
    with pytest.raises(BenchError, match="unknown task 'fashon'; did you mean 'fashion'"):
        recommend(results, "vit_mini", 1.0, task="fashon")
    with pytest.raises(BenchError, match="unknown protocol 'authors'; known: equal"):
        recommend(results, "vit_mini", 1.0, protocol="authors")
    with pytest.raises(BenchError, match="name a model with --model"):
        recommend(results, "", 1.0)


def test_an_empty_folder_and_none_are_said(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="there are no records in .*--results"):
        recommend(tmp_path, "vit_mini", 1.0)
    with pytest.raises(BenchError, match="there is no folder"):
        recommend(tmp_path / "missing", "vit_mini", 1.0)


def test_without_full_precision_there_is_no_drop(tmp_path: Path) -> None:
    put(tmp_path, 4.0, 89.0)
    with pytest.raises(BenchError, match="no full-precision run of vit_mini.*method fp32"):
        recommend(tmp_path, "vit_mini", 1.0)


def test_full_precision_alone_is_no_choice(tmp_path: Path) -> None:
    full(tmp_path)
    with pytest.raises(BenchError, match="no quantized run of 'vit_mini' has ended well"):
        recommend(tmp_path, "vit_mini", 1.0)


def test_the_nearest_is_named_where_nothing_loses_so_little(results: Path) -> None:
    put(results / "other", 4.0, 70.0, method="far")
    near = put(results / "other", 5.0, 80.0, method="near")
    full(results / "other")
    with pytest.raises(
        BenchError, match="at most 1 point; the nearest is near at W4A4, .* 10.00"
    ) as told:
        recommend(results / "other", "vit_mini", 1.0)
    assert near.run_id in str(told.value)


def test_a_model_of_several_tasks_is_asked_about(results: Path) -> None:
    full(results, task="imagenet")
    put(results, 1.0, 89.9, task="imagenet", method="other")
    with pytest.raises(BenchError, match="fashion, imagenet have records of 'vit_mini'.*--task"):
        recommend(results, "vit_mini", 1.0)
    assert recommend(results, "vit_mini", 1.0, task="imagenet").found[0].label == "other"


def test_rows_of_other_images_are_left_out_and_said_so(results: Path) -> None:
    full(results, limit=10)
    put(results, 0.5, 90.0, method="few", limit=10)
    found = recommend(results, "vit_mini", 1.0)
    assert "few" not in {one.label for one in found.found}
    assert found.left_out == ("1 row of other weights or images, or without full precision",)


def test_rows_whose_size_is_not_known_are_left_out_and_said_so(results: Path) -> None:
    put(results, None, 90.0, method="unknown", bits="W2A2")
    found = recommend(results, "vit_mini", 1.0)
    assert found.left_out == ("1 row without a record of the saved size",)


def test_figures_that_outcomes_do_not_bear_out_are_no_choice(results: Path) -> None:
    record = make_record(method="liar", value=90.0, n=N)
    Store(results).write(replace(record, size_mb=0.1), right(50.0))
    assert recommend(results, "vit_mini", 1.0).found[0].label == "good"


def test_the_protocol_and_the_source_are_told(results: Path) -> None:
    put(results, 2.0, 89.9, method="own", protocol="authors")
    assert recommend(results, "vit_mini", 1.0).found[0].place.protocol == "authors"
    assert recommend(results, "vit_mini", 1.0, protocol="equal").found[0].label == "good"


def test_the_command_prints_the_answer_in_eighty_columns(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = put(
        results, 2.0, 89.9, method="long", variant="with a label of many words", protocol="authors",
        parameters={"something": 1},
    )  # fmt: skip
    put(results, 2.5, 89.8, method="long", variant="with a label of many words", protocol="authors",
        parameters={"something": 2})  # fmt: skip
    assert main(["recommend", "--model", "vit_mini", "--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert f"bench repeat {record.run_id} --results {results}" in out
    assert "5 of 6 rows lose at most 1 point" in out and "authors" in out
    table = out[out.index("method  ") :]
    assert max(map(len, table.splitlines())) <= 80, table


def test_the_command_prints_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recommend", "--model", "vit_mini", "--max-drop", "0.5", "--results", str(results)]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["chosen"]["label"], data["chosen"]["bits"]) == ("bad", "W6A6")
    assert data["chosen"]["interval"] == [0.0, 0.0] and data["chosen"]["within"] is True
    assert [one["label"] for one in data["others"]] == ["good"]
    assert main([*words[:-4], "--max-drop", "-1", "--results", str(results)]) == 2
    assert "--max-drop" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["size", "seconds"])
def test_the_answer_on_the_stored_results_is_the_least_of_its_kind(by: str) -> None:
    folder = Path(__file__).parents[3] / "results" / "imagenet-sample"
    found = recommend(folder, "vit_tiny_patch16_224", 5.0, by=by)
    least = min(one.cost(by) or 0.0 for one in found.found)
    assert (found.found[0].cost(by) or 0.0) <= 1.01 * least
    assert all(one.drop.points <= 5.0 and one.drop.high is not None for one in found.found)
