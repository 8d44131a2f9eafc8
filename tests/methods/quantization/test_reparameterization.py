"""What is calibrated anew behind the fold of RepQ-ViT, and by which rule."""

import torch
from torch import nn

from vit_ptq_bench.methods.quantization import PERCENTILES, best_percentile_rule, shrink_rule
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import calibrate_weights
from vit_ptq_bench.methods.quantization.model.families.registry import wrap_model
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_behind_the_fold_are_calibrated_wherever_they_changed(
    vit: nn.Module, calibration: Calibration
) -> None:
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    calibrate_reparameterized(model, calibration)
    before = _state(model)
    calibrate_weights(model, best_percentile_rule(PERCENTILES))
    assert _equal(_state(model), before)


def test_a_rule_for_weights_leaves_activations_as_they_are(
    vit: nn.Module, calibration: Calibration
) -> None:
    one, other = (wrap_model(vit, equal_table(BitWidth(4, 4))) for _ in range(2))
    calibrate_reparameterized(one, calibration, weight_rule=shrink_rule())
    calibrate_reparameterized(other, calibration)
    assert not _equal(_state(one), _state(other))
    calibrate_weights(other, shrink_rule())
    assert _equal(_state(one), _state(other))
