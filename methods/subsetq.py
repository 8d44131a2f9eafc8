"""SubsetQ: weights on a subset of sums of two powers of two, chosen layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES


@dataclass(frozen=True)
class SubsetQParameters(ReparameterizationParameters):
    """Settings of `SubsetQ`; those of the activations are RepQ-ViT's.

    Attributes:
        rounding: to the ``nearest`` level, or ``compensated`` column by column as in GPTQ.
    """

    rounding: Literal["nearest", "compensated"] = "nearest"


@register_method
class SubsetQ(Method):
    """Each layer chooses, of all subsets of 15 magnitudes, the one that its weights are nearest to.

    Source: Oh et al., Non-uniform Step Size Quantization for Accurate Post-training Quantization, ECCV 2022;
    universal set and choice confirmed from the released code. Written for the weights of CNNs. Convention:
    the common table, activations as in RepQ-ViT; a weight has a sign and an index of b - 1 bits, so b bits
    are stored; one subset per layer, one scale per row; every weight, also of the first and the last layer.
    Deviations: the authors' training of the chosen weights, block by block on 1024 images, is left out;
    scales per row and not per layer, as the common table has them; all subsets are tried on 11 scales at once
    and the best is refitted, the authors refit each from one scale; beyond 4 bits, where they have no set,
    half of the numbers of b + 1 bits are chosen.
    """

    name = "subsetq"
    paper = (
        "Oh et al., Non-uniform Step Size Quantization for Accurate Post-training Quantization, "
        "ECCV 2022"
    )
    fidelity = "inspired"
    family = "calibration"
    schemes = {"attention": "log-sqrt2"} | dict.fromkeys(WEIGHT_SITES, "subset")
    note = "weights on 2^b signed levels of a table per layer (subset); activations as in RepQ-ViT"
    Parameters = SubsetQParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration with the search of levels for weights; if asked, rounding by columns."""
        p = self.parameters
        compensated = p.rounding == "compensated"
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            rule=parts.level_rule(parts.best_percentile_rule(parts.PERCENTILES)),
            progress=None if compensated else progress,
        )
        if compensated:
            model.activate(weights=False, activations=True)
            parts.round_columnwise(model, calibration, progress=progress)
