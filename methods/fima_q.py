"""FIMA-Q: reconstruction weighted by an approximation of the Fisher information matrix."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.reconstruction import Frontier, FrontierParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitTable, BitWidth


@dataclass(frozen=True)
class FimaQParameters(FrontierParameters):
    """Settings of `FimaQ`.

    Attributes:
        rank: of the approximation, refreshes in the course of a unit's iterations (the released configs: 5).
    """

    rank: int = counted(5)
    measured_images: int = bounded(32, at_least=0)


@register_method
class FimaQ(Frontier):
    """QDrop's reconstruction, with a loss that joins a low-rank and a diagonal Fisher information matrix.

    Source: Wu et al., CVPR 2025; algorithm confirmed from the released code. k times in each unit a row is
    added to G, the mean over images of |gradient| at the output of the unit, which alone is quantized, and
    to E, the mean of |error|; loss ``a (E E^T)^-1 a^T + mean(e^2 mean G)`` with ``a = |e| G^T``, each term
    divided by its value at the refresh. Convention: one scale per head, the image in floating point, 1024
    images. Deviations: the authors' activations have one learned scale per token position, which is a class
    of quantizers of its own: here one per tensor, under the authors' convention one per head in the
    attention products; E E^T gets a small ridge; it starts from searched ranges; the profile ``fast`` trains
    the weights through the rounding, measures on 32 images and has logarithmic grids for the attention map
    and behind GELU (`Frontier`).
    """

    name = "fima-q"
    paper = (
        "Wu et al., FIMA-Q: PTQ for Vision Transformers by Fisher Information Matrix Approximation, "
        "CVPR 2025"
    )
    note = "one scale per tensor or head, where the authors have one per token position"
    fidelity = "reimplementation"
    Parameters = FimaQParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the released code, which leaves the image as it is."""
        return super().authors_table(bits).change("patch_embed.input", bits=FLOAT)

    def recipe(self) -> parts.Recipe:
        """QDrop's mix and drop."""
        return self.configured([parts.FisherApproximation(rank=self.parameters.rank)])
