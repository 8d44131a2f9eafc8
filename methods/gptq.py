"""GPTQ: round weights column by column and compensate, on RepQ-ViT's activations."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class GptqParameters(ReparameterizationParameters):
    """Settings of `Gptq`; those of the activations are RepQ-ViT's.

    Attributes:
        damping: added to the diagonal of the second moment, as a share of its mean.
        order_by_diagonal: round the columns with the largest second moment first.
    """

    damping: float = bounded(0.01, at_least=0)
    order_by_diagonal: bool = True


@register_method
class Gptq(Method):
    """Minimise each layer's output error over its quantized inputs, one weight column after the other.

    Source: Frantar et al., ICLR 2023 (arXiv 2210.17323), written for language models; for vision transformers
    paired with RepQ-ViT's activation quantizers, as the ERQ authors do for their GPTQ rows. Convention: the
    common table; static; every weight (the patch embedding as a matrix, the head too); 32 images. Layers are
    taken in order, each with the inputs that the quantized layers before it give. Row scales: least squared
    error of 90 shrunk ranges, fixed before rounding. The log-sqrt2 attention quantizer is RepQ-ViT's.
    """

    name = "gptq"
    paper = "Frantar et al., GPTQ: Accurate PTQ for Generative Pre-trained Transformers, ICLR 2023"
    fidelity = "reimplementation"
    family = "compensation"
    schemes = {"attention": "log-sqrt2"}
    note = "activations as in RepQ-ViT"
    Parameters = GptqParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration, then one pass in which each layer is rounded."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            weight_rule=parts.shrink_rule(),
        )
        model.activate(weights=False, activations=True)
        parts.round_columnwise(
            model,
            calibration,
            damping=p.damping,
            order_by_diagonal=p.order_by_diagonal,
            progress=progress,
        )
