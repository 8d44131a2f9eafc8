"""H-ViT: every scale a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import (
    INPUT_SITES,
    OPERAND_ROLES,
    WEIGHT_SITES,
    BitTable,
    BitWidth,
    equal_table,
)

if TYPE_CHECKING:
    from torch import Tensor

SITES = WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES


@dataclass(frozen=True)
class HVitParameters:
    """Settings of `HVit`.

    Attributes:
        rounds: alternations at most between the exponents of an operation's two operands.
    """

    rounds: int = counted(2)


@register_method
class HVit(Method):
    """Scales of powers of two; channels of LayerNorm outputs differ by powers of two that fold away.

    Source: H-ViT, Autonomous Intelligent Systems 2025, from its abstract: all scales are powers of two, few
    of them, and inputs and outputs of LayerNorm, whose channels differ most, get a method of powers of two
    without hyper-parameters. The rest is this project's reading: the exponents of channels from their
    ranges, the exponent of every scale by the error of the operation's output.
    Convention (authors): symmetric, one scale per tensor; inputs of LayerNorm quantized too, per channel;
    attention map on powers of two. Under the common table LayerNorm inputs stay in floating point, weights
    have a scale per output channel, and grids are affine.
    Deviations: biases stay in floating point (theirs have 32 bits); LayerNorm, softmax and GELU are computed
    in floating point.
    """

    name = "h-vit"
    paper = "H-ViT, Autonomous Intelligent Systems 2025 (10.1007/s43684-025-00121-0)"
    fidelity = "inspired"
    family = "transformation"
    schemes = dict.fromkeys((*SITES, "norm.input"), "uniform-power-of-two") | {"attention": "log2"}
    note = "re-implementation from the abstract; LayerNorm inputs are quantized under protocol authors only"
    Parameters = HVitParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric quantizers, one scale per tensor, and LayerNorm inputs."""
        table = equal_table(bits).change(SITES, symmetric=True, granularity="tensor")
        return table.change(
            "norm.input", bits=bits.activation, symmetric=True, granularity="channel"
        )

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Fit all scales in one full-precision pass, fold, and choose exponents in a second pass."""
        least_squares = parts.least_squares_rule()

        def rule(site: parts.Site, x: Tensor) -> None:
            if site.quantizer.spec.scheme == "log2":
                heads = 1 if site.quantizer.axis is None else x.shape[site.quantizer.axis]
                site.quantizer.set_range(x.new_zeros(heads), x.new_ones(heads))
            else:
                least_squares(site, x)

        parts.calibrate_powers_of_two(model, calibration, rule, self.parameters.rounds, progress)
