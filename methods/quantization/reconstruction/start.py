"""A calibration to start a reconstruction from: ranges by squared error, LayerNorm scales folded away."""

from typing import Literal

from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    RangeRule,
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.calibration.range_search import (
    shifted_log_rule,
    two_ended_rule,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.log_grid import LogGridQuantizer
from vit_ptq_bench.methods.quantization.reparameterization import join_channels, split_channels


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
    rule = searched_rule()
    links = split_channels(model)
    calibrate_weights(model, rule)
    model.activate(weights=True, activations=False)
    calibrate_activations(model, calibration, rule, sequential=True, progress=progress)
    join_channels(links, zero_point, scale)
    calibrate_weights(model, rule)


def searched_rule() -> RangeRule:
    """Return a rule by the quantizer's form: two ends, shifted logarithm, or the extreme values."""
    uniform, shifted = two_ended_rule(), shifted_log_rule()

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        if isinstance(quantizer, LogGridQuantizer):
            (shifted if quantizer.shift else minmax_rule)(site, x)
        else:
            uniform(site, x)

    return rule
