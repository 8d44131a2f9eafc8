"""EasyQuant: scale search by cosine similarity of outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class EasyQuantParameters:
    """Settings of `EasyQuant`.

    Attributes:
        alpha, beta: smallest and largest factor on the min-max scale.
        steps: factors tried between them.
        rounds: alternations between weight and input.
        search: ``coarse-to-fine`` (about a quarter of the work) or ``exhaustive``.
    """

    alpha: float = bounded(0.5, more_than=0)
    beta: float = bounded(1.2, more_than=0)
    steps: int = counted(100)
    rounds: int = counted(1)
    search: Literal["coarse-to-fine", "exhaustive"] = "coarse-to-fine"


@register_method
class EasyQuant(Method):
    """Alternating search of weight and activation scales that maximises the cosine of the outputs.

    Source: Wu et al. 2020 (arXiv 2006.16669); range and one round as in the ViT papers that report it.
    Convention (authors): symmetric everywhere, weights per output channel, activations per tensor, static.
    Deviations: attention products, which the CNN paper does not have, are searched as any other
    operation; the grid is searched coarse to fine unless ``search = "exhaustive"``.
    """

    name = "easyquant"
    paper = "Wu et al., EasyQuant: Post-training Quantization via Scale Optimization, 2020"
    fidelity = "reimplementation"
    family = "calibration"
    version = 2
    Parameters = EasyQuantParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric quantizers."""
        return equal_table(bits).change(WEIGHT_SITES + INPUT_SITES + OPERAND_ROLES, symmetric=True)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Search each operation on its full-precision inputs and output."""
        p = self.parameters
        grid, total = parts.Grid(p.alpha, p.beta, p.steps), len(model.operations)
        for done, (operation, recording) in enumerate(
            parts.record_operations(model, calibration), start=1
        ):
            parts.search_operation(
                operation, recording, parts.CosineMetric(), grid, p.rounds, p.search
            )
            if progress is not None:
                progress(done, total)
