"""QFeM: the inputs whose largest tokens stick out keep more bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import BitTable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class QfemParameters(ReparameterizationParameters):
    """Settings of `Qfem`; those of the base are RepQ-ViT's.

    Attributes:
        share: of the layers' inputs that keep `kept_bits`, at most; 0: none.
        kept_bits: bits of those inputs, where the table gives fewer.
        at_least: ratio of the largest token to the middle one from which an input can keep them.
    """

    share: float = bounded(0.1, at_least=0, at_most=1)
    kept_bits: int = bounded(8, at_least=2, at_most=8)
    at_least: float = bounded(2.0, at_least=1)


@register_method
class Qfem(Method):
    """Find the layers whose input has few tokens far above the rest, and give that input more bits.

    Source: QFeM ("quantization-free module") of Yang et al., Mitigating Quantization Errors Due to Activation
    Spikes in GLU-Based LLMs (arXiv 2405.14428; Future Internet 2025), written for language models. The ratio
    is that of the released code: over tokens of one image the largest absolute value by its median, mean
    over images. Convention: the common table, but for the inputs kept; static; 32 images.
    Deviations: the inputs found keep 8 bits and not floating point; they are those of the largest ratios up
    to ``share`` of all, where the paper searches one threshold per model for a target accuracy; everything
    else is calibrated as by RepQ-ViT, because plain ranges at four bits leave nothing to compare. The
    prefix of the paper (QFeP: tokens put in front that take the spikes) has no meaning where the model has no
    text to put it in.

    More bits are stored on average than the width says: its rows stand in tables of their own.
    """

    name = "qfem"
    paper = (
        "Yang et al., Mitigating Quantization Errors Due to Activation Spikes in GLU-Based LLMs, "
        "Future Internet 2025"
    )
    fidelity = "reimplementation"
    family = "calibration"
    schemes = {"attention": "log-sqrt2"}
    Parameters = QfemParameters

    def notes(self) -> tuple[str, ...]:
        """Return how many inputs keep more bits, and the base."""
        p = self.parameters
        return (
            f"up to {p.share:.0%} of the layers' inputs keep {p.kept_bits} bits; all else as RepQ-ViT",
        )

    def found_table(
        self, model: nn.Module, table: BitTable, calibration: parts.Calibration
    ) -> BitTable:
        """Return ``table`` with more bits for the inputs of the largest ratios."""
        p = self.parameters
        wrapped = parts.wrap_model(model, table)
        ratios = parts.spike_ratios(wrapped, calibration)
        order = sorted(ratios, key=lambda name: (-ratios[name], name))
        kept = {
            name for name in order[: math.floor(p.share * len(order))] if ratios[name] >= p.at_least
        }
        sites = [site for site in wrapped.sites() if site.name in kept]
        sites = [site for site in sites if site.quantizer.spec.bits < p.kept_bits]
        return parts.with_widths(table, sites, [p.kept_bits] * len(sites))

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
