"""HMPTQ: bits for each layer by its error in the quantized network, and two regions inside a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, Protocol

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (2, 3, 4, 6, 8)
"""Bits that a layer's weight and input can get."""


@dataclass(frozen=True)
class HmptqParameters(ReparameterizationParameters):
    """Settings of `Hmptq`; those of the base are RepQ-ViT's.

    Attributes:
        regions: levels of weights: half of them for the ``two`` dense quarters around zero and half for what
            lies beyond, or ``one`` uniform grid.
    """

    regions: Literal["one", "two"] = "two"


@register_method
class Hmptq(Method):
    """Measure each layer's output error behind quantized layers, share bits out by it, measure once more.

    Source: HMPTQ, hierarchical mixed-precision post-training quantization (Remote Sensing 2024), of which the
    abstract and the titles of the sections were readable: (a) bits of a layer follow from the reconstruction
    error of its activation, (b) inside a layer, regions of low density and high value get more bits.
    Convention: the common table on average, for weights and for the inputs of layers; operands of attention
    products keep the width's bits; weights have the levels of PWLQ's three pieces, as many in the sparse
    outer region as in the dense inner one, so more for each of its values; bits are stored bits, log2 of all
    codes. Static; 32 images.
    Deviations (this project's design): the budget is solved exactly by dynamic programming; the error is
    relative to the output's energy, and measured twice, at one width for all and at the bits found; the base
    is RepQ-ViT's.
    """

    name = "hmptq"
    paper = "HMPTQ: Hierarchical Mixed-Precision Post-Training Quantization, Remote Sensing 2024"
    version = 2
    fidelity = "inspired"
    family = "calibration"
    schemes = {"attention": "log-sqrt2"}
    Parameters = HmptqParameters

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the common table with weights of two regions."""
        table = super().bit_table(bits, protocol)
        scheme = "piecewise" if self.parameters.regions == "two" else "uniform"
        return table.change(WEIGHT_SITES, scheme=scheme)

    def notes(self) -> tuple[str, ...]:
        """Return what bits are shared out by, and the base."""
        return (
            "bits by each layer's output error behind quantized layers, ranges as RepQ-ViT; from the "
            "abstract",
        )

    def found_table(
        self, model: nn.Module, table: BitTable, calibration: parts.Calibration
    ) -> BitTable:
        """Return ``table`` with the bits of layers' weights and inputs shared out."""
        width = BitWidth(table["fc1.weight"].bits, table["fc1.input"].bits)
        wrapped = parts.wrap_model(model, table)
        parts.fold_norm_outputs(wrapped, calibration, parts.best_percentile_rule(parts.PERCENTILES))
        sizes = parts.site_sizes(wrapped, calibration)
        rule = parts.piecewise_rule("gaussian", parts.shrink_rule(30, 0.03))
        grids = {
            bits: parts.grids_at(wrapped, calibration, bits, weight_rule=rule) for bits in WIDTHS
        }
        planned = {site.name: site.quantizer.spec.bits for site in wrapped.sites()}
        current = {name: _nearest(planned[name]) for name in grids[WIDTHS[0]]}
        errors = parts.reconstruction_errors(wrapped, calibration, grids, current)
        found = parts.shared_out(wrapped, sizes, errors, width)
        again = parts.wrap_model(model, found)
        chosen = {site.name: site.quantizer.spec.bits for site in again.sites()}
        current |= {name: _nearest(chosen[name]) for name in errors}
        errors = parts.reconstruction_errors(wrapped, calibration, grids, current)
        return parts.shared_out(wrapped, sizes, errors, width)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration, weights of two regions with the border of least squared error."""
        p = self.parameters
        rule = parts.best_percentile_rule(parts.PERCENTILES)
        if p.regions == "two":
            rule = parts.piecewise_rule("grid", rule)
        parts.calibrate_reparameterized(
            model, calibration, zero_point=p.zero_point, scale=p.scale, rule=rule, progress=progress
        )


def _nearest(bits: int) -> int:
    """The width in `WIDTHS` that is nearest to ``bits``: sites without a choice keep theirs otherwise."""
    return min(WIDTHS, key=lambda width: (abs(width - bits), width))
