"""BRECQ: block reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.reconstruction import Reconstruction, ReconstructionParameters
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class BrecqParameters(ReconstructionParameters):
    """Settings of `Brecq`.

    Attributes:
        loss: squared error of the unit's output, plain (``mse``, the released code's default) or weighted
            by the diagonal of the Fisher information (``fisher``, the paper's equation 10).
    """

    loss: Literal["mse", "fisher"] = "mse"


@register_method
class Brecq(Reconstruction):
    """Block reconstruction of each unit on its full-precision input.

    Source: Li et al., ICLR 2021 (arXiv 2102.05426), for CNNs; on the base that is known to work on vision
    transformers: RepQ-ViT's ranges and reparameterized LayerNorm outputs, the scales of attention maps by the
    error of attention x value, all uniform and static. Authors' convention: one scale per head, 1024 images.
    Deviations: one joint stage with activations quantized, their steps trained too, instead of weights first
    and steps behind them; the profile ``fast`` trains the weights through the
    rounding with few iterations, ``paper`` AdaRound roundings with the released code's; no 8-bit exception
    for the classifier; the Fisher weights come from labels drawn from the model's own prediction.
    """

    name = "brecq"
    paper = "Li et al., BRECQ: Pushing the Limit of PTQ by Block Reconstruction, ICLR 2021"
    version = 3
    Parameters = BrecqParameters

    def recipe(self) -> parts.Recipe:
        """Full-precision input, every activation quantized."""
        loss = parts.FisherError() if self.parameters.loss == "fisher" else parts.BlockError()
        return self.configured([loss], input_mix=0.0, keep=1.0)
