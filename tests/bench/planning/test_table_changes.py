"""The setting ``table`` of suites: what it is called, what it makes, and a run from end to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.planning.test_transforms import plan
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.spec import RunSpec
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.methods.quantization.bits import FLOAT

MINE = """\
task = "fashion"
models = ["vit_mini"]
methods = ["minmax"]
bits = ["W4A4"]

[variants.minmax.plain]
table = []

[variants.minmax.shifted]
table = [
    "symmetric",
    "power-of-two",
]
"""


def test_a_variant_has_its_own_table_and_keeps_it_in_its_record(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    plain, shifted = (runs[f"minmax {name}"].spec for name in ("plain", "shifted"))
    assert (plain.method.table, shifted.method.table) == ((), ("symmetric", "power-of-two"))
    assert "table" not in plain.to_dict()["method"]
    assert RunSpec.from_dict(shifted.to_dict()) == shifted
    for key, spec in shifted.table.items():
        if spec.bits == FLOAT:
            assert spec == plain.table[key]
            continue
        assert spec.scheme == "uniform-power-of-two"
        assert spec.symmetric == (key != "attention" or plain.table[key].symmetric)
        assert (spec.bits, spec.granularity) == (
            plain.table[key].bits,
            plain.table[key].granularity,
        )


def test_without_changes_a_run_has_the_identity_that_it_always_had(tmp_path: Path) -> None:
    runs = plan(tmp_path, MINE)
    bare = re.sub(r"(?s)\[variants.*", "", MINE)
    assert plan(tmp_path, bare)["minmax"].run_id == runs["minmax plain"].run_id
    assert runs["minmax shifted"].run_id != runs["minmax plain"].run_id


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"symmetric"',
            '"symetric"',
            "mine.toml:11: variants.minmax.shifted.table: unknown change of the bit table 'symetric'; "
            "did you mean 'symmetric'",
        ),
        (
            '"symmetric"',
            '"power-of-two"',
            "the change of the bit table 'power-of-two' stands there twice",
        ),
        ('"symmetric"', '"fixed-point"', "to powers of two or to fixed point, not to both"),
        ("table = []", 'table = "symmetric"', "table must be a list of names; got 'symmetric'"),
        ('methods = ["minmax"]', 'methods = ["fp32"]', "the suite runs no method 'minmax'"),
    ],
)
def test_what_is_no_change_is_refused_with_its_place(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=re.escape(message)):
        plan(tmp_path, MINE.replace(old, new))


def test_a_run_with_a_change_says_so_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(MINE)
    words = ["--limit", "20", "--calibration-images", "4", "--output", "out"]
    assert main(["run", "mine.toml", *words]) == 0
    assert "symmetric" in capsys.readouterr().out
    changed = next(one for one in Store(Path("out")).records() if one.spec.method.table)
    assert main(["show", changed.run_id, "--results", "out"]) == 0
    assert "table        power-of-two" in capsys.readouterr().out
    assert main(["repeat", changed.run_id, "--results", "out"]) == 0
    out = capsys.readouterr().out
    assert "the same on each image" in out and "not the same run" not in out
    assert main(["list", "table-changes"]) == 0
    assert "tensor-weights" in capsys.readouterr().out
