"""Formulas become MathML, or an error that names them."""

from xml.etree import ElementTree

import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.site.formulas import mathml

SPACE = "{http://www.w3.org/1998/Math/MathML}"


@pytest.mark.parametrize("display", ["inline", "block"])
def test_a_formula_is_drawn(display):
    tree = ElementTree.fromstring(mathml(r"\hat a = \frac{s}{2^{b}}", display))
    assert tree.tag == f"{SPACE}math" and tree.get("display") == display
    assert len(tree.findall(f".//{SPACE}mfrac")) == 1
    assert [node.text for node in tree.iter(f"{SPACE}mi")] == ["a", "s", "b"]


@pytest.mark.parametrize("latex", [r"\left( x", r"a \nosuchcommand b", r"x^2_"])
def test_what_cannot_be_drawn_is_named(latex):
    with pytest.raises(BenchError, match="cannot draw the formula") as caught:
        mathml(latex, "inline")
    assert repr(latex) in str(caught.value)
