"""Effects of factorials against independent computation, and what the tables say of them."""

import csv
import io
import re
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from tests.bench.samples import make_record
from tests.bench.toys import run, write_suite
from vit_ptq_bench.bench.report.effects import Result, corners, estimate, half_width, main_effect
from vit_ptq_bench.bench.report.factorial import factorials, sections, to_csv
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard
from vit_ptq_bench.bench.report.significance import Paired

FACTORS = ("start", "grid", "weights")
LEVELS = {"start": ("plain", "searched"), "grid": ("uniform", "log"), "weights": ("near", "solve")}
IMAGES = 400


def _label(corner):
    return " ".join(
        f"{'+' if added else ''}{factor}={LEVELS[factor][added]}"
        for factor, added in zip(FACTORS, corner, strict=True)
    )


def _design(seeds=(0,), bits="W4A4"):
    """Records with outcomes whose chances have known effects, and the outcomes [2, 2, 2, seeds, images]."""
    generator = np.random.default_rng(3)
    hardness = generator.normal(size=IMAGES)
    outcomes, records = np.zeros((2, 2, 2, len(seeds), IMAGES), dtype=bool), []
    for a, b, c in product((0, 1), repeat=3):
        for place, seed in enumerate(seeds):
            noise = generator.normal(size=IMAGES) + 0.2 * generator.normal()
            right = 0.2 * a + 1.0 * b + 0.6 * c - 0.5 * b * c - 0.4 > hardness + noise
            outcomes[a, b, c, place] = right
            record = make_record(
                method="rose",
                variant=_label((a, b, c)),
                parameters={"a": a, "b": b, "c": c},
                seed=seed,
                bits=bits,
                value=100 * float(right.mean()),
                n=IMAGES,
            )
            records.append((record, right))
    return records, outcomes


def _found(pairs):
    by_id = {record.run_id: right for record, right in pairs}
    return factorials([record for record, _ in pairs], lambda record: by_id.get(record.run_id))


def _rows(found):
    return {(row["kind"], row["parts"]): row for row in csv.DictReader(io.StringIO(to_csv(found)))}


def _interval(points):
    """Mean and 95 % interval of one number an image, in percent."""
    mean, error = points.mean(), points.std() / len(points) ** 0.5
    half = norm.ppf(0.975) * error
    return [100 * x for x in (mean, mean - half, mean + half)]


def test_effects_are_those_of_numpy():
    pairs, y = _design()
    y = y[..., 0, :].astype(float)
    rows = _rows(_found(pairs))
    wanted = {
        ("gain alone", "grid"): y[0, 1, 0] - y[0, 0, 0],
        ("gain on the rest", "weights"): y[1, 1, 1] - y[1, 1, 0],
        ("main effect", "start"): y[1].mean((0, 1)) - y[0].mean((0, 1)),
        ("main effect", "weights"): y[:, :, 1].mean((0, 1)) - y[:, :, 0].mean((0, 1)),
        ("interaction", "grid x weights"): (
            (y[:, 1, 1] - y[:, 1, 0]) - (y[:, 0, 1] - y[:, 0, 0])
        ).mean(0),
        ("interaction", "start x grid"): (
            (y[1, 1] - y[0, 1]) - (y[1, 0] - y[0, 0])
        ).mean(0),
    }  # fmt: skip
    for key, points in wanted.items():
        found = [float(rows[key][column]) for column in ("value", "low", "high")]
        np.testing.assert_allclose(found, _interval(points), atol=1e-4)
    values = {"none": y[0, 0, 0], "all": y[1, 1, 1]}
    for kind, right in values.items():
        assert float(rows[kind, ""]["value"]) == pytest.approx(100 * right.mean(), abs=1e-4)
    assert float(rows["rest", "grid"]["value"]) == pytest.approx(100 * y[1, 0, 1].mean(), abs=1e-4)
    assert float(rows["alone", "grid"]["value"]) == pytest.approx(100 * y[0, 1, 0].mean(), abs=1e-4)
    assert len(rows) == 2 + 3 * 4 + 3 + 3


def test_two_runs_have_the_interval_of_compare():
    (first, second) = np.random.default_rng(0).random((2, 90)) < [[0.7], [0.5]]
    contrast = first[None].astype(float) - second[None]
    low, high = Paired.of(first, second).interval
    assert half_width(contrast) == pytest.approx((high - low) / 2, rel=1e-12)


def test_a_main_effect_is_a_regression_coefficient():
    generator = np.random.default_rng(1)
    design = np.array(list(corners(4)), dtype=float)
    values = generator.random(16) * 100
    cells = {
        corner: {0: Result(value, None)} for corner, value in zip(corners(4), values, strict=True)
    }
    columns = np.hstack([np.ones((16, 1)), design - 0.5])
    fitted = np.linalg.lstsq(columns, values, rcond=None)[0][1:]
    found = [estimate(main_effect(4, factor), cells) for factor in range(4)]
    np.testing.assert_allclose([one.points for one in found], fitted)
    assert all(one.low is None and one.high is None for one in found)


def test_intervals_over_seeds_and_images_hold_what_they_should():
    """Coverage of the grand mean with both effects drawn anew; an interval over images alone misses it."""
    generator = np.random.default_rng(5)
    for spread, most in ((0.0, 0.99), (0.3, 1.0)):
        inside, naive, trials, truth = 0, 0, 600, 0.4
        for _ in range(trials):
            images, seeds = generator.normal(size=60), spread * generator.normal(size=(4, 1))
            drawn = truth + images + seeds + generator.normal(size=(4, 60))
            inside += abs(drawn.mean() - truth) <= half_width(drawn)
            naive += abs(drawn.mean() - truth) <= half_width(drawn.mean(axis=0)[None])
        assert 0.92 <= inside / trials <= most
    assert naive / trials < 0.85
    assert half_width(np.ones((3, 5))) == half_width(np.ones((1, 5))) == 0.0


def test_several_seeds_are_one_figure_of_all():
    pairs, y = _design(seeds=(0, 1, 2))
    rows = _rows(_found(pairs))
    mean = (y[:, 1].mean((0, 1)) - y[:, 0].mean((0, 1))).astype(float)
    row = rows["main effect", "grid"]
    assert float(row["value"]) == pytest.approx(100 * mean.mean(), abs=1e-4)
    assert row["seeds"] == "0 1 2"
    width = (float(row["high"]) - float(row["low"])) / 2
    assert width >= _interval(mean.mean(0))[2] - _interval(mean.mean(0))[0] - 0.1
    text = "\n\n".join(sections(_found(pairs)))
    assert "seeds 0, 1, 2, 400 images." in text


def test_the_section_says_what_the_csv_does_and_fits_a_terminal():
    pairs, _ = _design()
    reference = make_record(method="fp32", bits="W32A32", value=95.0, fidelity="reference")
    found = _found([*pairs, (reference, None)])
    text, rows = "\n\n".join(sections(found)), _rows(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "| start   | plain     | searched |" in text
    assert "top1: full precision 95.0, without any part" in text
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| grid")
    ]
    shown = {row[0]: row[1:] for row in cells if len(row) == 5}["grid"]
    for place, kind in enumerate(("alone", "gain alone", "rest", "gain on the rest")):
        value = float(re.match(r"[+-]?[\d.]+", shown[place])[0])
        assert value == pytest.approx(float(rows[kind, "grid"]["value"]), abs=0.0501)
    crossed = next(row for row in cells if row[0] == "grid x weights")
    figures = [float(x) for x in re.findall(r"[+-][\d.]+", crossed[2])]
    row = rows["interaction", "grid x weights"]
    assert crossed[1] == "interaction"
    np.testing.assert_allclose(
        figures, [float(row[k]) for k in ("value", "low", "high")], atol=0.0501
    )


def test_missing_combinations_are_said_and_no_figure_is_made_up():
    pairs, _ = _design(seeds=(0, 1))
    gone = [_label((1, 0, 1)), _label((0, 1, 0))]
    kept = [pair for pair in pairs if pair[0].variant not in gone]
    failed = make_record(
        method="rose", variant=gone[0], parameters={"a": 1, "b": 0, "c": 1}, status="oom"
    )
    found = _found([*kept, (failed, None)])
    text, rows = "\n\n".join(sections(found)), _rows(found)
    assert "- Seed 0: 2 of 8 combinations have no result (1 not run, 1 oom):" in text
    assert "- Seed 1: 2 of 8 combinations have no result (2 not run):" in text
    assert f"  - `{gone[0]}`" in text
    assert "No main effects or interactions: they need all combinations" in text
    assert "| grid    | not run | not run" in text
    empty = {key for key, row in rows.items() if row["value"] == ""}
    assert {key[0] for key in empty if key[1] != "grid"} == {"main effect", "interaction"}
    assert ("gain alone", "grid") in empty and ("gain on the rest", "grid") in empty
    assert float(rows["gain alone", "weights"]["value"]) != 0


def test_seeds_that_only_some_combinations_have_are_left_out_of_what_needs_them():
    pairs, y = _design(seeds=(0, 1))
    kept = [p for p in pairs if p[0].spec.seed == 0 or p[0].variant != _label((0, 0, 0))]
    rows = _rows(_found(kept))
    assert len(kept) == 15
    assert rows["main effect", "grid"]["seeds"] == "0"
    assert rows["gain on the rest", "grid"]["seeds"] == "0 1"
    first = y[..., 0, :].mean(-1)
    wanted = 100 * (first[:, 1] - first[:, 0]).mean()
    assert float(rows["main effect", "grid"]["value"]) == pytest.approx(wanted, abs=1e-4)


def test_runs_that_cannot_be_told_apart_give_no_figures():
    pairs, _ = _design()
    again = make_record(
        method="rose", variant=_label((0, 0, 0)), parameters={"other": 1}, value=1.0, n=IMAGES
    )
    text = "\n\n".join(sections(_found([*pairs, (again, pairs[0][1])])))
    assert "stands for several runs of one seed" in text and "main effect" not in text[-300:]
    renamed = make_record(
        method="rose", variant="start=other grid=uniform weights=near", parameters={"z": 1}, seed=9
    )
    found = _found([*pairs, (renamed, None)])
    assert "one level under several names (other, plain)" in "\n\n".join(sections(found))
    assert to_csv(found).count("\n") == 1


def test_outcomes_that_are_not_the_metric_give_figures_without_intervals():
    pairs, _ = _design()
    found = factorials([record for record, _ in pairs], lambda record: None)
    text, rows = "\n\n".join(sections(found)), _rows(found)
    assert "no outcomes to pair" in text
    row = rows["main effect", "grid"]
    assert float(row["value"]) > 0 and row["low"] == row["high"] == ""


def test_bit_widths_models_and_versions_are_factorials_of_their_own():
    pairs = [*_design()[0], *_design(bits="W3A3")[0]]
    found = _found(pairs)
    assert [one.bits for one in found] == ["W3A3", "W4A4"]
    text = "\n\n".join(sections(found))
    assert text.count("\n## ") + text.startswith("## ") == 1
    assert text.count("### Parts of rose: vit_mini, W") == 2
    assert list(sections([])) == []


def test_a_factorial_runs_from_the_command_line_to_its_tables(folder, capsys):
    factors = {
        f"factorial.toy-scarce.{name}": f"less = {{ {key} = 1 }}\nmore = {{ {key} = 2 }}"
        for name, key in (("batch", "batch_size"), ("room", "fits"))
    }
    write_suite(folder, '["toy-scarce"]', limit="12", **factors)
    assert run() == 0
    capsys.readouterr()
    output = folder / "output" / "toy"
    made = make_leaderboard(output)
    assert made.stale() == [] and set(made.files) == {
        "leaderboard.md",
        "leaderboard.csv",
        "effects.csv",
        "index.html",
    }
    text = (output / "leaderboard.md").read_text()
    assert "## Parts of toy-scarce: toy (version 1, 12 images of the evaluation set)" in text
    assert "| toy-scarce +batch=more room=less" in text
    with (output / "effects.csv").open() as file:
        rows = {(row["kind"], row["parts"]): row for row in csv.DictReader(file)}
    assert rows["main effect", "batch"]["value"] != ""
    assert rows["interaction", "batch x room"]["seeds"] == "0"
    (output / "effects.csv").write_text("x")
    assert made.stale() == [output / "effects.csv"]
