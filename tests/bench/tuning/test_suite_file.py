"""The suite that a search writes is one that `bench run` reads."""

from __future__ import annotations

import pytest

from vit_ptq_bench.bench.planning.plan import choices
from vit_ptq_bench.bench.planning.suite import read_suite
from vit_ptq_bench.bench.tuning.space import Configuration
from vit_ptq_bench.bench.tuning.suite_file import suite_text

FACTS = {"task": "fashion", "model": "vit_mini", "bits": "W3A3", "seed": 2, "scope": None}


def read(tmp_path, configuration, **facts):
    path = tmp_path / "found.toml"
    path.write_text(suite_text(configuration, "best of 24", FACTS | facts), encoding="utf-8")
    return read_suite(path)


def test_all_settings_arrive(tmp_path):
    own = {"zero_point": "fractional", "scale": "median", "switch": True, "level": 2, "none": None}
    suite = read(tmp_path, Configuration("repq-vit", 16, "authors", own))
    assert (suite.task, suite.models, suite.methods) == ("fashion", ("vit_mini",), ("repq-vit",))
    assert (suite.bits, suite.protocols, suite.seeds) == (("W3A3",), ("authors",), (2,))
    assert suite.calibration_images == 16 and suite.scopes == () and not suite.task_options
    del own["none"]
    [choice] = choices(suite, ["repq-vit"])
    assert dict(choice.settings) == own and choice.variant == "tuned"


def test_a_method_without_images_or_parameters(tmp_path):
    suite = read(tmp_path, Configuration("minmax", 0, "equal"), scope="full")
    assert suite.calibration_images is None and suite.scopes == ("full",)
    assert suite.variants == {"minmax": {"tuned": {}}}


def test_a_change_of_the_table_and_bits_that_are_shared_out(tmp_path):
    found = Configuration("minmax", 8, "equal", table="power-of-two", mixed=True)
    suite = read(tmp_path, found)
    assert suite.bits == ("W3A3:mixed",)
    [choice] = choices(suite, ["minmax"])
    assert dict(choice.settings) == {"table": ["power-of-two"]}
    assert read(tmp_path, Configuration("minmax", 8, "equal"), bits="W3A3:mixed").bits == suite.bits


@pytest.mark.parametrize("model", ["a/b c.d", 'qu"ote\\', "ü-ß-\x7f-😀", "x" * 190])
def test_any_name_of_a_model_can_be_written(model, tmp_path):
    suite = read(tmp_path, Configuration("minmax", 8, "equal"), model=model)
    assert suite.models == (model,)
    assert suite.name.startswith("tune-minmax-") and len(suite.name) <= 100
