"""ARCQ: layers that matter most keep the remainders of their roundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import MAX_BITS, BitTable

if TYPE_CHECKING:
    from torch import nn

REMAINDERS = (2, 3, 4)
"""Bits that a remainder can have."""


@dataclass(frozen=True)
class ArcqParameters(ReparameterizationParameters):
    """Settings of `Arcq`; those of the base are RepQ-ViT's.

    Attributes:
        share: of all quantized weights, at most, that lie in compensated layers; 0: none are.
    """

    share: float = bounded(0.25, at_least=0, at_most=1)


@register_method
class Arcq(Method):
    """Find the layers in which roundings cost most per weight; there, keep what rounding took away.

    Source: ARCQ (ICONIP 2022); the arithmetic is that of the released code, which its authors call
    incomplete: a value is kept as its code and as a code of the rounding's remainder, and a compensated
    layer adds up three integer products, without that of both remainders. Convention: the common table;
    in compensated layers weight and input have b + R stored bits, R = b and at most eight in all; static;
    32 images. More bits are stored on average than the width says: its rows stand in tables of their own.
    Deviations: which layers are critical is not in the release; here they are those whose roundings, of
    weight and input, cost the prediction most per weight (`sensitivities`), taken until ``share`` of the
    weights lies in them; the sum of the products with remainders is not rounded; all else is calibrated
    as in RepQ-ViT, but inputs of compensated layers are not folded; the name is that of the authors, not
    of a codebook method that is called so too.
    """

    name = "arcq"
    paper = "ARCQ: rounding remainders compensate critical layers, ICONIP 2022"
    fidelity = "inspired"
    family = "compensation"
    schemes = {"attention": "log-sqrt2"}
    Parameters = ArcqParameters

    def notes(self) -> tuple[str, ...]:
        """Return how many weights lie in compensated layers, and the base."""
        share = f"layers with up to {self.parameters.share:.0%} of the weights"
        return (f"{share} keep the remainders of their roundings; all else as RepQ-ViT",)

    def found_table(
        self, model: nn.Module, table: BitTable, calibration: parts.Calibration
    ) -> BitTable:
        """Return ``table`` with two codes per value in the layers that gain most."""
        width = table["fc1.weight"].bits
        if not self.parameters.share or width + REMAINDERS[0] > MAX_BITS:
            return table
        wrapped = parts.wrap_model(model, table)
        rule = parts.best_percentile_rule(parts.PERCENTILES)
        parts.fold_norm_outputs(wrapped, calibration, rule)
        lost = parts.sensitivities(wrapped, calibration, (width,))
        for layer in self._critical(wrapped, lost):
            for key in layer.quantizers():
                table = _with_remainder(table, parts.of_one(key, layer.name))
        return table

    def _critical(
        self, model: parts.QuantizedModel, lost: dict[str, dict[int, float]]
    ) -> list[parts.WeightedOperation]:
        """The layers that gain most per weight, as many as `share` allows."""

        def gain(layer: parts.WeightedOperation) -> float:
            sites = (quantizer.site for quantizer in layer.quantizers().values())
            return sum(sum(lost.get(site, {}).values()) for site in sites)

        layers = [op for op in model.weighted_operations() if op.weight_quantizer.site in lost]
        left = self.parameters.share * sum(layer.weight.numel() for layer in layers)
        chosen = []
        for layer in sorted(layers, key=lambda one: (-gain(one) / one.weight.numel(), one.name)):
            if layer.weight.numel() <= left:
                chosen.append(layer)
                left -= layer.weight.numel()
        return chosen

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model, calibration, zero_point=p.zero_point, scale=p.scale, progress=progress
        )


def _with_remainder(table: BitTable, entry: str) -> BitTable:
    """``table`` with a remainder for a site of one operation, if its form and bits leave room for one."""
    key, _, operation = entry.partition("@")
    spec = table.of(key, operation)
    remainder = min(spec.bits, MAX_BITS - spec.bits)
    if spec.is_float or spec.dynamic or spec.scheme != "uniform" or remainder not in REMAINDERS:
        return table
    return table.change(entry, bits=spec.bits + remainder, scheme=f"uniform-remainder-{remainder}")
