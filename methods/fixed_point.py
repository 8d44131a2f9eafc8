"""Fixed-point quantization: scales of least squares, rounded to a mantissa and a shift."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import (
    INPUT_SITES,
    OPERAND_ROLES,
    WEIGHT_SITES,
    BitTable,
    BitWidth,
    equal_table,
)

SITES = WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES


@dataclass(frozen=True)
class FixedPointParameters:
    """Settings of `FixedPoint`.

    Attributes:
        rounds: alternations of codes and scale at most, in each descent.
        starts: descents, from the extreme values' scale, from half of it, from a quarter and so on.
        output_factor: bring each layer's output nearer to the true one by a factor on its weight's scale.
    """

    rounds: int = counted(100)
    starts: int = bounded(3, at_least=1, at_most=16)
    output_factor: bool = True


@register_method
class FixedPoint(Method):
    """Scales that are the least-squares solution for their own codes, as a mantissa of 8 bits and a shift.

    Source: the post-training part of "Fixed-point Quantization for Vision Transformer", Chinese Automation
    Congress 2021, from its abstract: the set of scale factors that minimises the quantization error is found
    by an approximation scheme. How is this project's reading: codes and scale in turn, from three starts,
    then one factor per layer that makes up for what both operands' errors take from its output.
    Convention (authors): symmetric, one scale per tensor, static; integer products rescaled by fixed-point
    numbers.
    Deviations: under the common table, whose grids are affine, the zero point takes part in the descent.
    That of large activations works on a histogram of 4096 bins. LayerNorm, softmax and GELU are computed in
    floating point, as for every method here.
    """

    name = "fixed-point"
    paper = "Fixed-point Quantization for Vision Transformer, Chinese Automation Congress 2021"
    fidelity = "inspired"
    family = "calibration"
    schemes = dict.fromkeys(SITES, "uniform-fixed-point")
    note = "re-implementation from the abstract"
    quick = {"rounds": 10}
    Parameters = FixedPointParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric quantizers, one scale per tensor."""
        return equal_table(bits).change(SITES, symmetric=True, granularity="tensor")

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass, then the factors in a second one."""
        p = self.parameters
        rule = parts.least_squares_rule(p.rounds, p.starts)
        parts.calibrate_weights(model, rule)
        ranges = None if p.output_factor else progress
        parts.calibrate_activations(model, calibration, rule, progress=ranges)
        if p.output_factor:
            parts.fold_output_factors(model, calibration, progress)
