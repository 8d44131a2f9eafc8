"""Longformer's percentiles: chosen by squared error, chunk of tokens by chunk of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class LongformerPercentileParameters:
    """Settings of `LongformerPercentile`.

    Attributes:
        chunks: of the tokens, which choose their percentiles alone.
        candidates: percentiles, from ``least`` to 0.999999 with tails spaced by ratio, and 1.
        least: the smallest percentile.
    """

    chunks: int = counted(4)
    candidates: int = bounded(9, at_least=2, at_most=100)
    least: float = bounded(0.99, more_than=0.5, at_most=0.9999)


@register_method
class LongformerPercentile(Method):
    """Percentile ranges whose percentile is the one of least squared error, per chunk of tokens.

    Source: "Post-training quantization for Longformer with chunkwise quantization granularity and optimized
    percentile", 2022, from its title; written for language. The rule is this project's
    (`chunked_percentile_rule`).
    Convention: the common table (weights per output channel, activations per tensor, affine, static).
    Deviations: the common table has one scale per tensor, so the ranges that the chunks choose are averaged,
    where the paper's chunks keep scales of their own; weights choose a percentile too, per output channel.
    """

    name = "longformer-percentile"
    paper = (
        "PTQ for Longformer with Chunkwise Quantization Granularity and Optimized Percentile, 2022"
    )
    fidelity = "inspired"
    family = "calibration"
    note = "after the paper's title; chunks share one scale"
    quick = {"candidates": 4, "chunks": 2}
    Parameters = LongformerPercentileParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass."""
        p = self.parameters
        rule = parts.chunked_percentile_rule(p.chunks, parts.percentile_grid(p.candidates, p.least))
        parts.calibrate_weights(model, rule)
        parts.calibrate_activations(model, calibration, rule, progress=progress)
