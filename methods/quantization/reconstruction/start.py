"""A calibration to start a reconstruction from: ranges by squared error, LayerNorm scales folded away."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.offset_search import gelu_rule
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped, minmax_rule
from vit_ptq_bench.methods.quantization.calibration.range_search import sampled, two_ended_rule
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.log_grid import LogGridQuantizer
from vit_ptq_bench.methods.quantization.quantizers.shift_uniform_log import (
    ShiftUniformLogQuantizer,
)
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized


def calibrate_start(
    model: QuantizedModel,
    calibration: Calibration,
    *,
    zero_point: Literal["integer", "fractional"] = "integer",
    scale: Literal["mean", "median"] = "mean",
    progress: CalibrationProgress | None = None,
) -> None:
    """Calibrate as `calibrate_reparameterized` does, by rules that hold at three bits too.

    Both ends of every uniform range, of weights and activations, are searched by squared error; a shifted
    logarithmic grid behind GELU by its own. Percentiles above 0.999 clip next to nothing, which at three bits
    leaves most values on one or two codes.

    Args and errors: as in `calibrate_reparameterized`.
    """
    calibrate_reparameterized(
        model,
        calibration,
        zero_point=zero_point,
        scale=scale,
        rule=searched_rule(),
        progress=progress,
    )


def searched_rule() -> RangeRule:
    """Return a rule by the quantizer's form: two ends, shifted logarithm, or the extreme values."""
    uniform, behind_gelu = two_ended_rule(), gelu_rule()

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        if isinstance(quantizer, LogGridQuantizer):
            (behind_gelu if quantizer.domain == "gelu" else minmax_rule)(site, x)
        else:
            uniform(site, x)

    return rule


SHIFTS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shifts that I&S-ViT's released code tries."""


def shift_rule(uniform: RangeRule, shifts: Sequence[float] = SHIFTS) -> RangeRule:
    """Return a rule that gives shift-uniform-log2 quantizers the shift of least squared error per group.

    Args:
        uniform: the rule of all other quantizers.
        shifts: tried, over the range from the smallest to the largest value.
    """

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        if not isinstance(quantizer, ShiftUniformLogQuantizer):
            uniform(site, x)
            return
        groups = grouped(x, quantizer)
        low, high = torch.aminmax(groups, dim=1)
        probe = ShiftUniformLogQuantizer(quantizer.spec, quantizer.site, axis=0)
        entries, errors = sampled(groups), []
        for shift in shifts:
            probe.set_shifted_range(low, high, shift)
            errors.append((probe.fake_quantize(entries) - entries).square().sum(1))
        best = torch.stack(errors).argmin(0)
        quantizer.set_shifted_range(low, high, torch.tensor(shifts, device=x.device)[best])

    return rule
