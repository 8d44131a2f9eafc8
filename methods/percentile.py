"""Percentile calibration."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, equal_table


@dataclass(frozen=True)
class PercentileParameters:
    """Settings of `Percentile`.

    Attributes:
        fraction: share of the values below the upper end of the range, in (0.5, 1].
    """

    fraction: float = bounded(0.99999, more_than=0.5, at_most=1)


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
    family = "calibration"
    Parameters = PercentileParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric weights."""
        return equal_table(bits).change(WEIGHT_SITES, symmetric=True)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass."""
        rule = parts.percentile_rule(self.parameters.fraction)
        parts.calibrate_weights(model, parts.minmax_rule)
        parts.calibrate_activations(model, calibration, rule, progress=progress)
