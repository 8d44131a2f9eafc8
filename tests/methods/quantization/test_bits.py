"""Bit widths have one spelling, bit tables refuse what they do not know, and neither needs torch."""

import subprocess
import sys

import pytest

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    INPUT_SITES,
    OPERAND_ROLES,
    SITE_KEYS,
    WEIGHT_SITES,
    BitTable,
    BitWidth,
    TensorSpec,
    equal_table,
)


@pytest.mark.parametrize(("text", "pair"), [("W4A4", (4, 4)), ("W2A8", (2, 8)), ("W4A32", (4, 32))])
def test_bit_width_is_read(text, pair):
    width = BitWidth.parse(text)
    assert (width.weight, width.activation) == pair
    assert str(width) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "W4", "A4W4", "4/4", "W1A4", "W0A4", "W4A9", "W16A16", "W4A4x", "W4A4444"),
        *("w4a4", " W4A4", "W4A4 ", "W4A4\n", "W04A4", "W4A04", "W٤A٤", "W-4A4"),
    ],
)
def test_bad_bit_width_is_refused(text):
    with pytest.raises(MethodError, match=r"W4A4|2 to 8"):
        BitWidth.parse(text)


def test_equal_table_is_the_common_setting():
    table = equal_table(BitWidth(3, 5))
    assert all(table[key] == TensorSpec(3, "channel") for key in WEIGHT_SITES)
    assert table["patch_embed.input"].bits == 8
    others = (set(INPUT_SITES) | set(OPERAND_ROLES)) - {"patch_embed.input"}
    assert all(table[key] == TensorSpec(5) for key in others)


def test_weight_only_leaves_every_activation_in_float():
    table = equal_table(BitWidth(4, FLOAT))
    assert all(table[key].is_float for key in INPUT_SITES + OPERAND_ROLES)
    assert not any(table[key].is_float for key in WEIGHT_SITES)


def test_table_survives_json_and_change_touches_only_what_it_names():
    table = equal_table(BitWidth(4, 4)).change("attention", scheme="log2")
    assert BitTable.from_dict(table.to_dict()) == table
    assert {k for k in SITE_KEYS if table[k] != equal_table(BitWidth(4, 4))[k]} == {"attention"}


def test_change_does_not_quantize_what_is_float():
    table = equal_table(BitWidth(4, FLOAT)).change("attention", scheme="log2")
    assert table["attention"] == TensorSpec(FLOAT)


@pytest.mark.parametrize(
    "spec",
    [
        {"bits": 1},
        {"bits": 4, "granularity": "row"},
        {"bits": 4, "scheme": "Log 2"},
        {"bits": 4, "scheme": 2},
        {"bits": 4, "colour": 1},
        {"granularity": "tensor"},
        {"bits": 4, "granularity": "token"},
    ],
)
def test_bad_spec_is_refused(spec):
    with pytest.raises(MethodError):
        TensorSpec.from_dict(spec)


def test_table_names_missing_and_unknown_sites():
    data = equal_table(BitWidth(4, 4)).to_dict()
    data["keys"] = data.pop("key")
    with pytest.raises(MethodError, match=r"missing \['key'\], unknown \['keys'\]"):
        BitTable.from_dict(data)


ONE = "fc2.input@blocks.3.mlp.fc2"


def test_an_entry_for_one_operation_stands_in_place_of_the_entry_for_all():
    common = equal_table(BitWidth(4, 4))
    table = common.change(ONE, bits=8)
    assert table.of("fc2.input", "blocks.3.mlp.fc2") == TensorSpec(8)
    assert table.of("fc2.input", "blocks.2.mlp.fc2") == table["fc2.input"] == TensorSpec(4)
    assert table.own == {ONE: TensorSpec(8)}
    assert table != common and BitTable.from_dict(table.to_dict()) == table
    assert table.change(ONE, bits=4) == common  # it says nothing, and is gone


def test_a_change_for_all_changes_the_entries_for_one():
    table = equal_table(BitWidth(4, 4)).change(ONE, bits=8).change("fc2.input", scheme="twin")
    assert table[ONE] == TensorSpec(8, scheme="twin") and table["fc2.input"].scheme == "twin"
    both = equal_table(BitWidth(4, 4)).change([ONE, "fc2.input"], bits=6)
    assert not both.own and both["fc2.input"].bits == 6


def test_entries_for_one_operation_need_a_known_site():
    data = equal_table(BitWidth(4, 4)).to_dict()
    for bad in ("fc3.input@blocks.3.mlp.fc3", "fc2.input@", "neck.weight@neck.lateral"):
        with pytest.raises(MethodError, match=bad):
            BitTable.from_dict(data | {bad: {"bits": 8}})
    with pytest.raises(MethodError, match="no site"):
        equal_table(BitWidth(4, 4)).change("fc3.input@blocks.3.mlp.fc3", bits=8)


@pytest.mark.parametrize(
    "module",
    [
        "vit_ptq_bench.methods",
        "vit_ptq_bench.methods.errors",
        "vit_ptq_bench.methods.quantization",
        "vit_ptq_bench.methods.quantization.bits",
    ],
)
def test_importing_bits_does_not_import_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
