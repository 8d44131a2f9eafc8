"""The order of methods in two folders of results, correlated."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, spearmanr

from tests.bench.samples import MADE, make_record, on
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.agreement import _interval, agreement_text, agreements


def write(folder, values, **what):
    """Write a record for each method of a mapping from name to figure."""
    for method, value in values.items():
        Store(folder).write(make_record(method=method, value=float(value), **what))


REAL = {"a": 80, "b": 70, "c": 60, "d": 50, "e": 40}


def test_each_model_and_their_mean_rank_are_correlated_with_the_first_folder(tmp_path):
    write(tmp_path / "real", REAL | {"only there": 99}, task="imagenet", model="big")
    write(tmp_path / "mini", REAL | {"only here": 99}, model="alike")
    # a and e change places: the sum of the squared differences of ranks is 32.
    write(tmp_path / "mini", REAL | {"a": 40, "e": 80}, model="other")
    found = {one.model: one for one in agreements(tmp_path / "real", tmp_path / "mini")}
    assert set(found) == {"alike", "other", "mean rank"}
    assert found["alike"].correlation == pytest.approx(1)
    assert found["other"].correlation == pytest.approx(1 - 6 * 32 / (5 * 24))
    assert {one.methods for one in found.values()} == {5}
    assert found["other"].best == (("a", 5), ("b", 2), ("c", 3))
    # Mean ranks 3, 2, 3, 4, 3: b is first, d last, and the others between them.
    assert found["mean rank"].best == (("a", 3), ("b", 1), ("c", 3))
    assert found["mean rank"].correlation == pytest.approx(
        spearmanr([1, 2, 3, 4, 5], [3, 2, 3, 4, 3]).statistic
    )


def test_bit_widths_and_protocols_are_held_apart(tmp_path):
    for folder in ("real", "mini"):
        write(tmp_path / folder, REAL, bits="W4A4")
        write(tmp_path / folder, REAL, bits="W6A6", protocol="authors")
    write(tmp_path / "mini", REAL, bits="W3A3")
    found = agreements(tmp_path / "real", tmp_path / "mini")
    assert sorted((one.bits, one.protocol) for one in found) == [
        ("W4A4", "equal"),
        ("W6A6", "authors"),
    ]


def test_calibration_images_of_another_source_are_a_cell_of_their_own(tmp_path):
    for folder in ("real", "mini"):
        write(tmp_path / folder, REAL)
        for method, value in REAL.items():
            Store(tmp_path / folder).write(
                on(make_record(method=method, value=100.0 - value), MADE)
            )
    found = agreements(tmp_path / "real", tmp_path / "mini")
    assert [(one.source, one.correlation, one.best[0][0]) for one in found] == [
        ("", pytest.approx(1), "a"),
        ("psaq-vit steps=30", pytest.approx(1), "e"),
    ]
    assert "W4A4 equal, calibration on psaq-vit steps=30 (0 real images)\n" in agreement_text(found)


def test_methods_that_are_all_alike_have_no_order(tmp_path):
    write(tmp_path / "real", REAL)
    write(tmp_path / "mini", dict.fromkeys(REAL, 10))
    (one,) = agreements(tmp_path / "real", tmp_path / "mini")
    assert (one.correlation, one.low, one.high) == (None, None, None)
    assert "nan" not in agreement_text([one])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=12), st.randoms(use_true_random=False))
def test_the_interval_holds_within_what_a_correlation_can_be(values, random):
    other = random.sample(values, len(values))
    if len(set(values)) > 1:
        low, high = _interval(np.array(values, float), np.array(other, float))
        assert -1.0000001 <= low <= high <= 1.0000001


def test_the_interval_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(3)
    first = rng.permutation(30).astype(float)
    second = first + rng.normal(size=30) * 8
    theirs = bootstrap(
        (first, second),
        lambda a, b: spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert _interval(first, second) == pytest.approx(tuple(theirs), abs=0.03)


def test_from_the_command_line(tmp_path, capsys):
    real, mini = tmp_path / "real", tmp_path / "mini"
    write(real, REAL, task="imagenet", model="big")
    write(mini, REAL)
    assert main(["compare", "--ranks", str(real), str(mini)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("imagenet, then fashion: W4A4 equal\n")
    assert "vit_mini  5          1.00" in text and max(map(len, text.splitlines())) <= 110
    assert main(["compare", "--ranks", str(real), str(mini), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["model"], one["methods"], one["best"][0]) == ("vit_mini", 5, ["a", 1.0])


def test_what_has_no_order_in_common_is_told(tmp_path, capsys):
    real, mini = tmp_path / "real", tmp_path / "mini"
    write(real, {"a": 1, "b": 2})
    write(mini, {"a": 1, "b": 2})
    with pytest.raises(BenchError, match="at least 3 methods"):
        agreements(real, mini)
    write(real, REAL, limit=1000)
    with pytest.raises(BenchError, match="several tables of vit_mini at W4A4 equal"):
        agreements(real, mini)
    run = make_record(method="a").run_id
    assert main(["compare", "--ranks", run, run, "--results", str(real)]) == 2
    assert f"--ranks takes folders or revisions, and '{run}' is neither" in capsys.readouterr().err
    assert main(["compare", "--ranks", str(real), "nosuch", "--results", str(real)]) == 2
    assert "and 'nosuch' is neither" in capsys.readouterr().err
