"""Percentile calibration."""

from dataclasses import dataclass

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule, percentile_rule
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel


@dataclass(frozen=True)
class PercentileParameters:
    """Settings of `Percentile`.

    Attributes:
        fraction: share of the values below the upper end of the range, in (0.5, 1].
    """

    fraction: float = 0.99999


@register_method
class Percentile(Method):
    """Activation ranges from the q and 1 - q quantiles instead of the extremes; weights by min-max.

    Source: Wu et al. 2020 (arXiv 2004.09602), with FQ-ViT's q = 0.99999 (Lin et al., IJCAI 2022).
    Convention (authors): symmetric weights per output channel, affine static activations per tensor.
    Deviation: exact quantiles over the whole calibration set, not a moving average over batches.
    """

    name = "percentile"
    paper = "Wu et al., Integer Quantization for Deep Learning Inference, 2020; q of FQ-ViT"
    fidelity = "reimplementation"
    Parameters = PercentileParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric weights."""
        return equal_table(bits).change(WEIGHT_SITES, symmetric=True)

    def calibrate(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        progress: CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass."""
        rule = percentile_rule(self.parameters.fraction)
        calibrate_weights(model, minmax_rule)
        calibrate_activations(model, calibration, rule, progress=progress)
