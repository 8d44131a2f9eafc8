"""LS-ViT: reconstruction weighted by a Hessian estimated by least squares."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.reconstruction import Frontier, FrontierParameters
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class LsVitParameters(FrontierParameters):
    """Settings of `LsVit`.

    Attributes:
        rank_one: whether the rank-one term counts besides the diagonal.
    """

    rank_one: bool = True


@register_method
class LsVit(Frontier):
    """QDrop's reconstruction, with errors weighted by how the prediction's gradients follow them.

    Source: Hwang, Nguyen, Lee, CVPR 2026, known at second hand (a summary of its equations); no code could
    be had. In each unit, once, over all images: e the error of the calibrated unit's output behind the
    quantized prefix, g the gradient there of KL(softmax(p / 20) || softmax(p^ / 20)), the rest in full
    precision; diagonal ``H_i = sum g_i e_i / sum e_i^2``, rank one ``u = sum g s / sum s^2`` with ``s =
    sqrt(e . g)``; loss ``1/2 sum H_i e_i^2 + 1/2 (u . e)^2``. Ours: negative entries and products are zero,
    and the sum is divided by its value before training. Convention: one scale per head, 1024 images.
    Deviations: it starts from searched ranges; the profile ``fast`` trains the weights through the rounding,
    measures on 64 images and has logarithmic grids for the attention map and behind GELU (`Frontier`); no
    8-bit exception for the classifier. Where roundings are trained (``paper``), e and g are measured while
    the weights are still those of full precision but for what is clipped.
    """

    name = "ls-vit"
    version = 2
    paper = (
        "Hwang et al., LS-ViT: Least-Squares Hessian Based Block Reconstruction for Low-Bit PTQ of "
        "Vision Transformers, CVPR 2026"
    )
    note = "written from a summary of the paper's equations"
    fidelity = "inspired"
    Parameters = LsVitParameters

    def recipe(self) -> parts.Recipe:
        """QDrop's mix and drop."""
        return self.configured([parts.LeastSquaresHessian(rank_one=self.parameters.rank_one)])
