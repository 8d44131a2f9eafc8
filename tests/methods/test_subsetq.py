"""SubsetQ's ways to choose codes: one table per layer for all, and the error of the output falls."""

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.quantizers.power_sums import SubsetQuantizer
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized


def _quantized(model, calibration, bits="W3A32", **settings):
    method = METHODS.get("subsetq").create(settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


@torch.no_grad()
def test_other_choices_of_codes_are_nearer_on_the_same_levels(vit, calibration, tmp_path):
    images, errors, tables = calibration.whole(), {}, []
    for rounding in ("nearest", "compensated", "trained"):
        settings = {"iterations": 60, "batch_size": 8} if rounding == "trained" else {}
        model = _quantized(vit, calibration, rounding=rounding, **settings)
        errors[rounding] = float((model(images) - vit(images)).norm())
        tables.append({op.name: op.weight_quantizer.levels for op in model.weighted_operations()})
        save_quantized(model, tmp_path / rounding, {})
        assert torch.equal(load_quantized(tmp_path / rounding, vit)(images), model(images))
    assert all(torch.equal(table[name], tables[0][name]) for table in tables for name in table)
    assert errors["compensated"] < 0.8 * errors["nearest"]
    assert errors["trained"] < 0.85 * errors["nearest"]


@torch.no_grad()
def test_every_weight_is_a_scale_times_a_sum_of_two_powers(tiny, calibration):
    model = _quantized(tiny, calibration, "W3A8")
    known = SubsetQuantizer.candidates(3)
    for operation in model.weighted_operations():
        quantizer = operation.weight_quantizer
        levels = operation.weight.flatten(1) / quantizer.scale[:, None]
        used = {round(abs(x), 5) for x in levels.flatten().tolist()}
        assert used <= {round(x, 5) for x in known.tolist()} and len(used) <= 4


def test_fewer_images_than_a_batch_are_refused_before_any_work(vit, calibration):
    with pytest.raises(MethodError, match="batch"):
        _quantized(vit, calibration, rounding="trained", batch_size=9)
    assert "trains roundings, 5 iterations" in " ".join(
        METHODS.get("subsetq").create({"rounding": "trained", "iterations": 5}).notes()
    )
