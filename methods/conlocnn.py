"""CoNLoCNN: weights of one or two signed powers of two, their errors cancelled by correlated inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES

NEIGHBOURS = 16
"""Columns whose correlations the mode ``local`` knows of."""


@dataclass(frozen=True)
class CoNLoCNNParameters(ReparameterizationParameters):
    """Settings of `CoNLoCNN`; those of the activations are RepQ-ViT's.

    Attributes:
        mode: errors are made up for by all columns still to come (``full``, GPTQ's rule), or by those
            within blocks of 16 neighbouring columns (``local``).
        damping: added to the diagonal of the second moment, as a share of its mean.
    """

    mode: Literal["full", "local"] = "full"
    damping: float = bounded(0.01, at_least=0)


@register_method
class CoNLoCNN(Method):
    """Weights on sums of two signed powers of two; signed errors of correlated inputs cancel each other.

    Source: Hanif et al., IJCNN 2022, from the abstract: non-uniform weights that few shifts multiply, and a
    compensation that exploits the correlation of neighbouring activations, without cost at run time.
    Convention: the common table, activations as in RepQ-ViT, 32 images; one table of 2^b numbers per layer,
    one scale per row; b bits are stored. Ours: the exponents, the choice of the numbers by the layer's
    squared error, and the compensation, which is GPTQ's (Frantar et al., ICLR 2023) on this table, with the
    second moment of all columns or, nearer to the abstract, of neighbouring ones. Two digits give no finer
    steps near the largest value however many bits there are: at 6 bits and more a uniform grid has the
    smaller error.
    """

    name = "conlocnn"
    paper = (
        "Hanif et al., CoNLoCNN: Exploiting Correlation and Non-uniform Quantization for Energy-efficient "
        "Low-precision Deep Convolutional Neural Networks, IJCNN 2022"
    )
    fidelity = "inspired"
    family = "compensation"
    schemes = {"attention": "log-sqrt2"} | dict.fromkeys(WEIGHT_SITES, "signed-powers")
    Parameters = CoNLoCNNParameters

    def notes(self) -> tuple[str, ...]:
        """Return the convention, with the columns that make up for errors."""
        local = self.parameters.mode == "local"
        columns = f"{NEIGHBOURS} neighbouring columns" if local else "all columns, as GPTQ"
        return (
            "weights of at most two signed powers of two, a table per layer (signed-powers); errors made "
            f"up for by {columns}; from the abstract; activations as in RepQ-ViT",
        )

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration with the search of levels, then one pass in which each layer is rounded."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            rule=parts.level_rule(parts.best_percentile_rule(parts.PERCENTILES)),
        )
        model.activate(weights=False, activations=True)
        local = p.mode == "local"
        parts.round_columnwise(
            model,
            calibration,
            damping=p.damping,
            order_by_diagonal=not local,
            neighbours=NEIGHBOURS if local else None,
            progress=progress,
        )
