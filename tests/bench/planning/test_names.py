"""Names as people type them."""

import pytest

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import choose, hint

KNOWN = ["minmax", "omse", "ptq4vit", "repq-vit"]


@pytest.mark.parametrize(
    ("typed", "meant"), [("rep-vit", "repq-vit"), ("RepQ-ViT", "repq-vit"), ("ptq", "ptq4vit")]
)
def test_near_match(typed: str, meant: str) -> None:
    with pytest.raises(BenchError, match=f"unknown method '{typed}'; did you mean '{meant}'"):
        choose("method", [typed], KNOWN)


def test_nothing_near() -> None:
    assert hint("zzz", KNOWN) == "; known: minmax, omse, ptq4vit, repq-vit"
    assert hint("zzz", []) == "; there are none"


def test_globs_and_names_in_order_and_once() -> None:
    assert choose("method", ["ptq4vit", "*m*", "repq-*"], KNOWN) == [
        "ptq4vit",
        "minmax",
        "omse",
        "repq-vit",
    ]
    assert choose("method", ["*"], KNOWN) == KNOWN
    with pytest.raises(BenchError, match="no method matches 'x\\*'"):
        choose("method", ["x*"], KNOWN)
