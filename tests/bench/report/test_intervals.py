"""Intervals of means over draws: they hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from vit_ptq_bench.bench.report.intervals import of_errors, of_outcomes, of_replicates

NUMBERS = np.random.default_rng(11)
IMAGES = 400


def draws(deviation: float, k: int = 3) -> tuple[float, list[np.ndarray]]:
    """The expected share, and outcomes of k draws: images are unlike, and so are draws."""
    hard = norm.rvs(0, 1.0, IMAGES, random_state=NUMBERS)
    shifts = norm.rvs(0, deviation, k, random_state=NUMBERS)
    # A right outcome: ability 0.8 + shift of the draw, less the image's difficulty, with noise of 0.5.
    noise = norm.rvs(0, 0.5, (k, IMAGES), random_state=NUMBERS)
    truth = 100 * norm.cdf(0.8 / np.sqrt(1.0 + 0.25 + deviation**2))
    return truth, list(0.8 + shifts[:, None] - hard + noise > 0)


@pytest.mark.parametrize("deviation", [0.0, 0.15, 0.5])
def test_an_interval_holds_the_truth_in_about_95_of_100(deviation: float) -> None:
    """By the draws alone, as on the page before, it held in as few as 60 of 100."""
    held = 0
    for _ in range(400):
        truth, outcomes = draws(deviation)
        interval = of_outcomes(outcomes)
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert 0.9 <= held / 400 <= 0.995


def test_draws_that_agree_on_every_image_have_the_interval_of_one() -> None:
    right = np.arange(500) < 400
    interval = of_outcomes([right] * 3)
    # Wilson's of 400 of 500: [76.27, 83.27].
    assert interval == pytest.approx((76.27, 83.27), abs=0.02)


def test_draws_that_differ_beyond_their_images_make_it_wider() -> None:
    right = np.arange(500)
    one, many = of_outcomes([right < 400] * 3), of_outcomes([right < n for n in (340, 400, 460)])
    assert one is not None and many is not None
    assert many[0] < one[0] - 5 and many[1] > one[1] + 5


def test_nothing_right_in_any_draw_is_not_certain() -> None:
    interval = of_outcomes([np.zeros(500, dtype=bool)] * 3)
    assert interval is not None and interval[0] == 0.0 and 0.5 < interval[1] < 1.0


def test_replicates_have_both_parts() -> None:
    sets = NUMBERS.normal(0, 1, 200)
    same = of_replicates(60.0, [60 + sets] * 3)
    assert same == pytest.approx(
        (60 - 1.97 * sets.std(ddof=1), 60 + 1.97 * sets.std(ddof=1)), abs=0.01
    )
    apart = of_replicates(60.0, [value + sets for value in (55.0, 60.0, 65.0)])
    assert apart is not None and apart[0] < 52


def test_standard_errors_alone_are_added_to_what_draws_differ_by() -> None:
    interval = of_errors([60.0, 60.0], [1.0, 1.0])
    assert interval == pytest.approx((60 - 1.96, 60 + 1.96), abs=0.01)
    wider = of_errors([58.0, 62.0], [1.0, 1.0])
    assert wider is not None and wider[0] < 54
    assert of_errors([60.0, 60.0], [1.0, None]) is None


def test_one_draw_or_one_image_or_unlike_draws_have_none() -> None:
    one = np.ones(5, dtype=bool)
    assert of_outcomes([one]) is None and of_outcomes([]) is None
    assert of_outcomes([one[:1]] * 2) is None and of_outcomes([one, one[:3]]) is None
    assert of_replicates(60.0, [one]) is None and of_errors([60.0], [1.0]) is None
