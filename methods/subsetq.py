"""SubsetQ: weights on a subset of sums of two powers of two, chosen layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES


@dataclass(frozen=True)
class SubsetQParameters(ReparameterizationParameters):
    """Settings of `SubsetQ`; those of the activations are RepQ-ViT's.

    Attributes:
        rounding: to the ``nearest`` level, ``compensated`` column by column as in GPTQ, or ``trained``: up or
            down as AdaRound learns it block by block.
        iterations, batch_size, rate: of ``trained``: per block, in images, Adam's learning rate.
    """

    rounding: Literal["nearest", "compensated", "trained"] = "nearest"
    iterations: int = bounded(60, at_least=0)
    batch_size: int = counted(8)
    rate: float = bounded(1e-2, at_least=0)


@register_method
class SubsetQ(Method):
    """Each layer chooses, of all subsets of 15 magnitudes, the one that its weights are nearest to.

    Source: Oh et al., Non-uniform Step Size Quantization for Accurate Post-training Quantization, ECCV 2022;
    universal set and choice confirmed from the released code. Written for the weights of CNNs. Convention:
    the common table, activations as in RepQ-ViT; a weight has a sign and an index of b - 1 bits, so b bits
    are stored; one subset per layer, one scale per row; every weight, also of the first and the last layer.
    Deviations: the authors train a factor of each weight block by block on 1024 images, here AdaRound between
    neighbouring levels stands for it, where ``rounding = "trained"`` asks for it; scales per row and not per
    layer, as the common table has them; all subsets are tried on 11 scales at once and the best is refitted,
    the authors refit each from one scale; beyond 4 bits, where they have no set, half of the numbers of
    b + 1 bits are chosen.
    """

    name = "subsetq"
    paper = (
        "Oh et al., Non-uniform Step Size Quantization for Accurate Post-training Quantization, "
        "ECCV 2022"
    )
    fidelity = "reimplementation"
    family = "calibration"
    schemes = {"attention": "log-sqrt2"} | dict.fromkeys(WEIGHT_SITES, "subset")
    note = "weights on 2^b signed levels of a table per layer (subset); activations as in RepQ-ViT"
    Parameters = SubsetQParameters

    def notes(self) -> tuple[str, ...]:
        """Return the convention, and how codes are chosen where they are not the nearest."""
        p = self.parameters
        how = {
            "nearest": (),
            "compensated": ("codes chosen column by column as in GPTQ",),
            "trained": (
                f"trains roundings, {p.iterations} iterations of {p.batch_size} images per block",
            ),
        }
        return (*super().notes(), *how[p.rounding])

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse fewer images than a batch, where roundings are trained."""
        if self.parameters.rounding == "trained":
            self._recipe().check(model.structure, calibration.n_images)

    def _recipe(self) -> parts.Recipe:
        p = self.parameters
        return parts.Recipe(
            trainables=(parts.Roundings(p.rate),),
            iterations=p.iterations,
            batch_size=p.batch_size,
            keep=1.0,
        )

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration with the search of levels for weights, then the choice of codes."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            rule=parts.level_rule(parts.best_percentile_rule(parts.PERCENTILES)),
            progress=progress if p.rounding == "nearest" else None,
        )
        if p.rounding == "compensated":
            model.activate(weights=False, activations=True)
            parts.round_columnwise(model, calibration, progress=progress)
        if p.rounding == "trained":
            parts.reconstruct(model, calibration, self._recipe(), progress)
