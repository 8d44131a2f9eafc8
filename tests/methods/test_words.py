"""A method's words: data of their own, joined with the table's; and errors that name a parameter."""

import pytest

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.reconstruction import Reconstruction
from vit_ptq_bench.methods.api.registry import METHODS, register_method
from vit_ptq_bench.methods.api.words import table_words
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table


@pytest.mark.parametrize("name", sorted(METHODS.module_dict))
def test_conventions_are_table_and_notes(name):
    method = METHODS.get(name).create()
    notes = method.notes()
    for protocol in ("equal", "authors"):
        table = method.bit_table(BitWidth(4, 4), protocol)
        assert method.convention(table) == "; ".join((*table_words(table), *notes))
    assert notes[: bool(method.note)] == ((method.note,) if method.note else ())


def test_what_is_known_from_an_abstract_alone_is_no_reimplementation():
    known = [METHODS.get(name) for name in METHODS.module_dict]
    from_abstracts = [cls for cls in known if "from the abstract" in cls.note]
    assert len(from_abstracts) > 5
    assert {cls.name for cls in from_abstracts if cls.fidelity != "inspired"} == set()


def test_parts_that_were_read_in_the_authors_code_are_more_than_inspired():
    for name in ("subsetq", "pwlq", "qfem"):
        assert METHODS.get(name).fidelity == "reimplementation"


def test_words_of_tables():
    table = equal_table(BitWidth(4, 4))
    assert table_words(table) == ("every site quantized", "static")
    mixed = table.change("head.input", bits=32).change("query", dynamic=True)
    assert table_words(mixed) == ("floating point: head.input", "dynamic: query")


def test_notes_say_how_long_is_trained_what():
    notes = METHODS.get("qdrop").create({"learn": "rounding", "iterations": 7}).notes()
    assert notes == ("trains roundings and activation steps, 7 iterations of 8 images per block",)
    fixed = METHODS.get("brecq").create({"step_rate": 0.0, "unit": "half"}).notes()
    assert fixed == ("trains weights, 60 iterations of 8 images per half",)
    own, base = METHODS.get("mgrq").create({"block": False}).notes()
    assert own.startswith("re-implementation")
    assert base == "no reconstruction; starts from weights solved in closed form"
    smoothing = METHODS.get("lrquant").create({"batch_size": 2}).notes()
    assert smoothing == (
        "trains smoothing and weight clipping, 80 iterations of 2 images per block",
    )


def test_errors_name_the_parameter(vit, calibration):
    for name, settings in (
        ("ptq4vit", {"gradient": "exact"}),
        ("ptq4vit", {"steps": "many"}),
        ("minmax", {"alhpa": 1}),
        ("mgrq", {"iterations": -1}),
        ("mgrq", {"batch_size": 0}),
    ):
        with pytest.raises(MethodError) as caught:
            METHODS.get(name).create(settings)
        assert caught.value.parameter == next(iter(settings))
    for settings in ({"batch_size": 9}, {"unit": "layer", "holdout": 0.0}):
        method = METHODS.get("mgrq").create(settings)
        with pytest.raises(MethodError) as caught:
            method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)
        assert caught.value.parameter == next(iter(settings))


def test_abstract_methods_are_refused():
    with pytest.raises(TypeError, match="abstract"):
        Method()
    fields = {"name": "abstract", "paper": "none"}
    with pytest.raises(MethodError, match=r"must define calibrate"):
        register_method(type("Incomplete", (Method,), fields))
    with pytest.raises(MethodError, match=r"must define recipe"):
        register_method(type("Incomplete", (Reconstruction,), fields))
    assert "abstract" not in METHODS.module_dict
