"""APHQ-ViT: reconstruction weighted by a Hessian from perturbations, with ReLU in the place of GELU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.reconstruction import RELU_PAPER, ReluFrontier, ReluParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitTable, BitWidth


@dataclass(frozen=True)
class AphqParameters(ReluParameters):
    """Settings of `AphqViT`.

    Attributes:
        signs: of the perturbation: ``random`` ones, or the released code's ``constant`` on all channels.
        probes: random draws per image.
    """

    signs: Literal["random", "constant"] = "random"
    probes: int = counted(8)
    measured_images: int = bounded(16, at_least=0)


@register_method
class AphqViT(ReluFrontier):
    """QDrop's reconstruction, with errors weighted by the Hessian's diagonal; GELU replaced by ReLU.

    Source: Wu et al., CVPR 2025; algorithm confirmed from the released code, but for the perturbation. The
    code adds one constant to all channels of a block's output. The LayerNorm that reads it takes the
    constant out again, so the exact difference of gradients is zero: the code's weights are the rounding
    noise of float32, which depends on the machine (they follow the sensitivity of tokens all the same). Here
    random signs are added, K draws per image, whose expectation is the diagonal that was meant; ``signs =
    "constant"`` is the code's. Convention: one scale per head, the image in floating point, 1024 images.
    Deviations: the MLP reconstruction is not weighted by the Hessian, clips at the same percentile at every
    width (released config of four bits: .98), leaves LayerNorm alone and aims at the original stream behind
    each MLP (`refit_relu`); ranges are searched; in the profile ``fast`` it fits fc2 in closed form, the
    weights are trained through the rounding, the Hessian is measured on 16 images and the attention map has
    a logarithmic grid (`Frontier`).
    """

    name = "aphq-vit"
    version = 2
    paper = (
        "Wu et al., APHQ-ViT: PTQ with Average Perturbation Hessian Based Reconstruction for Vision "
        "Transformers, CVPR 2025"
    )
    profiles = {"paper": RELU_PAPER}
    Parameters = AphqParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the released code, which leaves the image as it is."""
        return super().authors_table(bits).change("patch_embed.input", bits=FLOAT)

    def recipe(self) -> parts.Recipe:
        """QDrop's mix and drop."""
        p = self.parameters
        return self.configured([parts.PerturbationHessian(signs=p.signs, probes=p.probes)])
