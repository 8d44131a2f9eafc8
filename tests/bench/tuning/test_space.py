"""What of a method can be searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.tuning.space import Configuration, space_of
from vit_ptq_bench.methods import METHODS, Method, MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth

W4A4 = BitWidth.parse("W4A4")


CHANGES = (None, "symmetric", "tensor-weights", "power-of-two", "fixed-point")


def named(*methods: str, bits: BitWidth = W4A4, **more) -> dict[str, tuple]:
    space = space_of([METHODS.get(name) for name in methods], bits, (8, 16), **more)
    return {one.name: one.values for one in space.dimensions}


def test_choices_and_switches_are_dimensions_and_numbers_are_none():
    assert named("repq-vit") == {
        "method": ("repq-vit",),
        "calibration images": (8, 16),
        "bit table": ("equal",),
        "table": CHANGES,
        "mixed": (False, True),
        "zero_point": ("integer", "fractional"),
        "scale": ("mean", "median"),
    }


def test_authors_with_another_table_give_a_choice_of_granularity_and_symmetry():
    assert named("minmax")["bit table"] == ("equal", "authors")


def test_several_methods_are_a_choice_of_clipping():
    found = named("minmax", "percentile", "omse")
    assert list(found) == ["method", "calibration images", "bit table", "table", "mixed"]
    assert found["method"] == ("minmax", "percentile", "omse")
    with pytest.raises(BenchError, match="unknown parameter with choices 'zero_point'"):
        named("minmax", "repq-vit", only=["zero_point"])


def test_what_would_change_nothing_is_no_choice():
    assert "mixed" not in named("repq-vit", bits=BitWidth.parse("W8A8"))
    assert "mixed" not in named("repq-vit", bits=BitWidth.parse("W4A4:mixed"))
    assert "mixed" not in named("hmptq")  # it shares bits out by itself
    assert "table" not in named("fixed-point")  # its scales are rounded as they are
    space = space_of([METHODS.get(name) for name in ("minmax", "hmptq")], W4A4, (8,))
    for name in ("minmax", "hmptq"):
        one = Configuration(name, 8, "equal", mixed=True)
        assert space.allows(space.number(one)) == (name == "minmax")


def test_a_profile_is_searched_only_if_asked_for():
    assert "profile" not in named("qdrop")
    assert named("qdrop", only=["profile"])["profile"] == ("fast", "paper")
    always = {"method", "calibration images", "bit table"}
    assert set(named("qdrop", only=["learn"])) == always | {"learn"}
    assert set(named("qdrop", only=["learn", "mixed"])) == always | {"learn", "mixed"}


def test_every_method_has_a_space_whose_defaults_are_its_own():
    for name, cls in METHODS.module_dict.items():
        if cls.fidelity == "reference" or not cls.calibration_images:
            continue
        space = space_of([cls], W4A4, (8, 32))
        assert space.default.images == 32 and space.default.protocol == "equal"
        method = cls.create(dict(space.default.parameters))
        assert method.parameters == cls.create().parameters, name
        assert space.configuration(space.number(space.default)) == space.default


def test_all_combinations_have_a_number():
    space = space_of([METHODS.get("rose")], W4A4, (8, 16, 32))
    assert space.size > 1000
    numbers = np.random.default_rng(0).choice(space.size, 50, replace=False)
    found = [space.configuration(int(n)) for n in numbers]
    assert [space.number(one) for one in found] == list(numbers)
    assert len({one.key for one in found}) == 50


@dataclass(frozen=True)
class Odd:
    """Of every kind."""

    count: int = 3
    name: str = "x"
    either: Literal["a", "b"] | None = None
    other: Literal["a", "b"] | None = "b"
    level: Literal[1, 2] = 2
    fast: bool = True
    wide: bool | float = False


class Picky(Method):
    """A method whose settings do not all go together."""

    name = "picky"
    Parameters = Odd

    @classmethod
    def create(cls, settings=None):
        method = super().create(settings)
        if method.parameters.either == "a" and not method.parameters.fast:
            raise MethodError("a is fast")
        return method

    def calibrate(self, model, calibration, progress=None):
        raise AssertionError("never called")


def test_none_is_a_value_only_where_it_is_the_default_and_mixed_types_are_none():
    space = space_of([Picky], W4A4, (8,))
    values = {one.name: one.values for one in space.dimensions[5:]}
    assert values == {
        "either": (None, "a", "b"),
        "other": ("b", "a"),
        "level": (2, 1),
        "fast": (True, False),
    }


def test_a_table_that_another_combination_has_too_is_tried_once():
    """MinMax's authors' grids are symmetric: made symmetric, the common ones are the same."""
    space = space_of([METHODS.get("minmax")], W4A4, (8,))
    method = METHODS.get("minmax").create()
    seen = set()
    for number in range(space.size):
        one = space.configuration(number)
        if one.mixed or not space.allows(number):
            continue
        table = method.with_table([one.table] if one.table else []).planned_table(
            W4A4, one.protocol
        )
        assert str(table.to_dict()) not in seen
        seen.add(str(table.to_dict()))
    assert len(seen) > 5
    assert space.allows(space.number(space.default))


def test_what_the_method_refuses_is_not_allowed():
    space = space_of([Picky], W4A4, (8,))
    own = {"either": "a", "other": "b", "level": 2, "fast": False}
    assert not space.allows(space.number(Configuration("picky", 8, "equal", own)))
    assert space.allows(space.number(Configuration("picky", 8, "equal", own | {"fast": True})))


class Blind(Picky):
    """Uses no image and has no choices."""

    name = "blind"
    calibration_images = 0
    Parameters = dataclass(frozen=True)(type("Nothing", (), {}))

    @classmethod
    def create(cls, settings=None):
        return cls(cls.Parameters())


def test_a_method_without_choices_is_refused():
    with pytest.raises(BenchError, match="blind has no choices: give several"):
        space_of([Blind], W4A4, (8, 16), only=["mixed"])
    with pytest.raises(BenchError, match="did you mean 'zero_point'"):
        named("repq-vit", only=["zero_pont"])
