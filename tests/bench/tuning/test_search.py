"""The search on objectives that are known: it finds the best, goes on where it stopped, follows its seed."""

from __future__ import annotations

import numpy as np
import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.tuning.search import Objective, best, search
from vit_ptq_bench.bench.tuning.space import Configuration, Dimension, Space
from vit_ptq_bench.bench.tuning.trials import Trial, TrialFile
from vit_ptq_bench.methods import METHODS, MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth

PLAIN = Objective("value", lambda value: -value)


class Free(METHODS.get("minmax")):
    """Takes any settings: the spaces here are made by hand."""

    @classmethod
    def create(cls, settings=None):
        return cls()


def space_with(*sizes: int) -> Space:
    own = [Dimension(f"p{i}", tuple(range(size))) for i, size in enumerate(sizes)]
    dimensions = (
        Dimension("method", ("free",)),
        Dimension("calibration images", (8, 16, 32)),
        Dimension("bit table", ("equal", "authors")),
        *own,
    )
    own_values = {one.name: 0 for one in own}
    default = Configuration("free", 32, "equal", own_values)
    return Space({"free": Free}, dimensions, default, BitWidth(4, 4))


def table_of(space: Space, seed: int, pairs: float = 0.5) -> np.ndarray:
    """Values of all configurations: a part of each dimension, a part of each pair of neighbours."""
    generator = np.random.default_rng(seed)
    codes = space.codes(np.arange(space.size))
    values = np.zeros(space.size)
    for d, size in enumerate(space.shape):
        values += generator.normal(size=size)[codes[:, d]]
        if d:
            pair = pairs * generator.normal(size=(space.shape[d - 1], size))
            values += pair[codes[:, d - 1], codes[:, d]]
    return values


def found_in(space: Space, values: np.ndarray, count: int, seed: int, trials=()) -> list[Trial]:
    return search(
        space, PLAIN, lambda one: float(values[space.number(one)]), trials, count, seed, len
    )


def test_a_space_that_can_be_enumerated_gives_its_optimum():
    space = space_with(2)
    values = table_of(space, seed=1)
    trials = found_in(space, values, 100, seed=0)
    assert len(trials) == space.size == 12
    assert len({one.configuration.key for one in trials}) == 12
    assert best(trials, PLAIN).value == values.min()


def test_the_first_trial_is_the_method_as_it_is():
    space = space_with(2, 3)
    assert found_in(space, table_of(space, 0), 1, 0)[0].configuration == space.default


def test_a_twelfth_of_a_space_is_enough_and_better_than_chance():
    """24 of 288: the regression's best is among the few best; that of 24 random trials less often."""
    space = space_with(4, 3, 2, 2)
    ranks, random_ranks = [], []
    for seed in range(20):
        values = table_of(space, seed)
        order = np.sort(values)
        value = best(found_in(space, values, 24, seed), PLAIN).value
        ranks.append(int(np.searchsorted(order, value)))
        drawn = np.random.default_rng(seed).choice(space.size, 24, replace=False)
        random_ranks.append(int(np.searchsorted(order, values[drawn].min())))
    assert np.median(ranks) <= 1
    assert np.mean(ranks) < 0.5 * np.mean(random_ranks)


@pytest.mark.parametrize("cut", [0, 1, 5, 8, 9, 17, 23])
def test_a_search_that_stopped_goes_on_as_if_it_had_not(cut):
    space = space_with(4, 3)
    values = table_of(space, seed=3)
    whole = found_in(space, values, 24, seed=5)
    rest = found_in(space, values, 24, seed=5, trials=found_in(space, values, cut, seed=5))
    assert [(t.configuration, t.value) for t in rest] == [(t.configuration, t.value) for t in whole]


def test_the_seed_decides():
    space = space_with(4, 3)
    values = table_of(space, seed=3)
    keys = {
        seed: [t.configuration.key for t in found_in(space, values, 12, seed)] for seed in (0, 0, 1)
    }
    assert keys[0] == [t.configuration.key for t in found_in(space, values, 12, 0)]
    assert keys[0] != keys[1]


def test_a_space_too_large_to_list_is_searched_too():
    space = space_with(4, 4, 4, 4, 4, 4)
    assert space.size == 24576
    values = table_of(space, seed=2)
    trials = found_in(space, values, 40, seed=0)
    assert len({one.configuration.key for one in trials}) == 40
    share = np.mean(values <= best(trials, PLAIN).value)
    assert share < 0.005


def test_refused_trials_are_kept_and_not_repeated():
    space = space_with(3)

    def measure(one: Configuration) -> float:
        if one.protocol == "authors":
            raise MethodError("not so")
        return float(one.images)

    trials = search(space, PLAIN, measure, [], 18, 0, len)
    refused = [one for one in trials if one.value is None]
    assert len(trials) == 18 and len(refused) == 9
    assert {one.message for one in refused} == {"not so"}
    assert best(trials, PLAIN).value == 8.0


def test_all_refused_has_no_best():
    def measure(one: Configuration) -> float:
        raise MethodError("never")

    trials = search(space_with(2), PLAIN, measure, [], 10, 0, len)
    assert len(trials) == 10 and best(trials, PLAIN) is None


FACTS = {"bits": "W4A4", "seed": 0, "sizes": (8, 16)}


def test_trials_come_back_from_their_file(tmp_path):
    space = space_with(2)
    file = TrialFile(tmp_path, FACTS, space)
    assert file.read() == []
    generator = np.random.default_rng(0)
    trials = [
        Trial(space.configuration(number), float(generator.normal()), 0.125) for number in range(9)
    ]
    trials.append(Trial(space.configuration(9), None, 1.5, "too wide\nby far"))
    file.write(trials)
    assert TrialFile(tmp_path, FACTS, space).read() == trials


def test_trials_of_another_search_are_refused(tmp_path):
    space = space_with(2)
    TrialFile(tmp_path, FACTS, space).write([])
    other = TrialFile(tmp_path, FACTS | {"bits": "W3A3"}, space)
    with pytest.raises(BenchError, match="another search .bits: 'W4A4' there, 'W3A3' here"):
        other.read()


DAMAGE = {
    "cut": lambda text: text[:-20],
    "no json": lambda text: text + "x\n",
    "value": lambda text: text.replace("0.5", '"half"'),
    "not a number": lambda text: text.replace("0.5", "NaN"),
    "no value": lambda text: text.replace('"value":0.5', '"value":null'),
    "other space": lambda text: text.replace('"p0":1', '"p0":7'),
    "field": lambda text: text.replace('"status"', '"state"'),
    "list": lambda text: text + "[]\n",
    "empty": lambda text: "",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_refused(how, tmp_path):
    space = space_with(2)
    file = TrialFile(tmp_path, FACTS, space)
    file.write([Trial(space.configuration(1), 0.5, 0.25)])
    text = file.path.read_text()
    assert DAMAGE[how](text) != text
    file.path.write_text(DAMAGE[how](text))
    with pytest.raises(BenchError, match="remove it"):
        file.read()
