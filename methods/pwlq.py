"""PWLQ: weights on three uniform pieces, a fine one for the many small and coarse ones for the few large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    MAX_BITS,
    WEIGHT_SITES,
    BitTable,
    BitWidth,
    equal_table,
)


@dataclass(frozen=True)
class PwlqParameters(ReparameterizationParameters):
    """Settings of `Pwlq`; those of the activations are RepQ-ViT's.

    Attributes:
        border: between the pieces, by each row's squared error (``grid``), or by the authors' formula for
            normal weights (``gaussian``).
        bias_correction: keep each row's standard deviation and mean, the mean by way of the bias.
    """

    border: Literal["grid", "gaussian"] = "grid"
    bias_correction: bool = True


@register_method
class Pwlq(Method):
    """Each row is cut at -p and p: half of the codes for the middle, a quarter for either tail.

    Source: Fang et al., ECCV 2020 (arXiv 2002.00104); border, its grid and the bias correction confirmed from
    the released code. Written for CNNs. The paper's b bits are those of the middle piece: with both tails
    there are 2^(b+1) codes, and b + 1 bits are stored. Bits here are the stored ones: under ``equal`` W4 has
    8 codes in the middle and 4 in each tail (the paper's b = 3), under ``authors`` it has 5 bits (b = 4; at
    most 8). Convention: the common table, activations as in RepQ-ViT, 32 images. Deviations: the authors'
    activations are symmetric and uniform, with ranges from the ten extremes of batches of 4 of 512 images;
    levels are the centres of equal cells (`PiecewiseQuantizer` says why); the mean's correction goes into
    the bias.
    """

    name = "pwlq"
    paper = "Fang et al., Post-training Piecewise Linear Quantization for Deep Neural Networks, ECCV 2020"
    fidelity = "reimplementation"
    family = "calibration"
    schemes = {"attention": "log-sqrt2"} | dict.fromkeys(WEIGHT_SITES, "piecewise")
    note = (
        "weights on three uniform pieces (piecewise), bits as they are stored, one more than the paper's b; "
        "activations as in RepQ-ViT"
    )
    Parameters = PwlqParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with the bits that the authors' b bits of a weight take, at most 8."""
        table = equal_table(bits)
        if bits.weight == FLOAT:
            return table
        return table.change(WEIGHT_SITES, bits=min(bits.weight + 1, MAX_BITS))

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration with the search of borders for weights, then the bias correction."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            rule=parts.piecewise_rule(p.border, parts.best_percentile_rule(parts.PERCENTILES)),
            progress=None if p.bias_correction else progress,
        )
        if p.bias_correction:
            model.activate(weights=False, activations=True)
            parts.keep_row_moments(model, calibration, progress)
