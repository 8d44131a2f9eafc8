"""Entries of a bit table for one operation: they reach its quantizers, its file and the words about it."""

from dataclasses import replace

import pytest
import torch

from tests.bench.samples import make_record
from vit_ptq_bench.bench.contract.codes import most_levels
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.footnotes import deviation, differences
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.api.words import table_words
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table, of_one
from vit_ptq_bench.methods.quantization.model.families.registry import wrap_model

KEYS = {
    "fc2.input@blocks.1.mlp.fc2": 6,
    "fc2.weight@blocks.0.mlp.fc2": 2,
    "key@blocks.0.attn.scores": 8,
    "attention@blocks.1.attn.context": 5,
}


def mixed(table):
    for key, bits in KEYS.items():
        table = table.change(key, bits=bits)
    return table


def test_quantizers_of_the_named_sites_alone_have_other_bits(vit):
    common = equal_table(BitWidth(3, 4))
    found = {
        of_one(site.key, site.operation.name): site.quantizer.spec
        for site in wrap_model(vit, mixed(common)).sites()
    }
    plain = {
        of_one(site.key, site.operation.name): site.quantizer.spec
        for site in wrap_model(vit, common).sites()
    }
    assert {key: spec.bits for key, spec in found.items() if spec != plain[key]} == KEYS


@torch.no_grad()
def test_no_site_has_more_levels_than_its_own_bits(vit, images, calibration):
    method = METHODS.get("repq-vit").create({})
    quantized = method.quantize(vit, mixed(method.bit_table(BitWidth(3, 4))), calibration)
    _, found = most_levels(quantized, images)
    assert all(levels <= allowed for levels, allowed in found.values())
    assert {allowed for _, allowed in found.values()} == {4, 8, 16, 32, 64, 256}


def test_an_operation_that_the_model_has_not_is_named_with_what_it_has(vit):
    table = equal_table(BitWidth(4, 4)).change("fc2.input@blocks.9.mlp.fc2", bits=8)
    with pytest.raises(MethodError, match=r"blocks\.9\.mlp\.fc2.*it has, for example, fc2\.input@"):
        wrap_model(vit, table)


def test_a_form_is_held_to_its_domain_for_one_operation_too(vit):
    table = equal_table(BitWidth(4, 4)).change("fc1.input@blocks.0.mlp.fc1", scheme="log2")
    with pytest.raises(MethodError, match=r"fc1\.input@blocks\.0.*values from 0 up"):
        wrap_model(vit, table)


def test_words_name_up_to_three_and_count_more():
    common = equal_table(BitWidth(4, 4))
    few = common.change("fc2.input@blocks.0.mlp.fc2", bits=8)
    assert differences(few, common) == "fc2.input of blocks.0.mlp.fc2: 8 bit"
    many = common
    for index in range(5):
        many = many.change(f"fc2.input@blocks.{index}.mlp.fc2", bits=32)
    assert differences(many, common) == "fc2.input of 5 operations: floating point"
    assert "floating point: fc2.input of 5 operations" in table_words(many)


def test_a_record_keeps_them_and_tells_them_from_the_common_table():
    common = equal_table(BitWidth(4, 4))
    record = replace(make_record(), common_table=dict(common))
    table = common.change("fc2.input@blocks.0.mlp.fc2", bits=8)
    spec = replace(record.spec, table=dict(table))
    again = Record.from_dict(replace(record, spec=spec).to_dict())
    assert again.spec.table == dict(table) and again.common_table == dict(common)
    assert again.run_id != record.run_id
    assert deviation(again) == "fc2.input of blocks.0.mlp.fc2: 8 bit"
