"""PD-Quant: reconstruction with the difference of the prediction."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import bounded
from vit_ptq_bench.methods.api.reconstruction import PAPER, Reconstruction, ReconstructionParameters
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class PDQuantParameters(ReconstructionParameters):
    """Settings of `PDQuant`.

    Attributes:
        prediction_weight: weight of the prediction difference (the released code's 1 / lambda_r).
        temperature: of both softmaxes.
    """

    prediction_weight: float = bounded(10.0, at_least=0)
    temperature: float = bounded(4.0, more_than=0)


@register_method
class PDQuant(Reconstruction):
    """QDrop's loss plus the KL of the prediction with the rest of the model in full precision.

    Source: Liu et al., CVPR 2023 (arXiv 2212.07048), for CNNs; on the base that is known to work on vision
    transformers: RepQ-ViT's ranges and reparameterized LayerNorm outputs, the scales of attention maps by the
    error of attention x value, all uniform and static; activation steps are trained with the weights.
    Authors' convention: one scale per head, 1024 images. Deviations: the distribution
    correction is left out, for it matches BatchNorm statistics and a vision transformer has none; the profile
    ``fast`` trains weights through the rounding instead of roundings; no 8-bit exception for the classifier.
    Both losses are divided by the block error's first value, which keeps their ratio.
    """

    name = "pd-quant"
    paper = "Liu et al., PD-Quant: PTQ Based on Prediction Difference Metric, CVPR 2023"
    version = 3
    profiles = {"paper": PAPER | {"weight_rate": 3e-3}}
    Parameters = PDQuantParameters

    def recipe(self) -> parts.Recipe:
        """QDrop's mix and drop; the prediction sees the quantized input."""
        settings = self.parameters
        difference = parts.PredictionDivergence(
            weight=settings.prediction_weight, temperature=settings.temperature
        )
        losses = (parts.BlockError(), difference)
        return self.configured(losses, input_mix=0.5, keep=0.5, weighting="shared")
