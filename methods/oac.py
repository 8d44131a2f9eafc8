"""OAC: column-wise rounding by what a weight's error does to the prediction, on RepQ-ViT's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class OacParameters(ReparameterizationParameters):
    """Settings of `Oac`; those of the activations are RepQ-ViT's.

    Attributes:
        mode: ``samples``: the Hessian from gradients of the weight, one per image (the paper's); ``tokens``:
            the same without products of different tokens of an image.
        draws: of the labels of each image, from the model's own prediction.
        floor: share of `gptq`'s matrix in the Hessian; 0: none, as in the paper.
        damping: added to the diagonal of the Hessian, as a share of its mean.
        order_by_diagonal: round the columns with the largest diagonal first.
        batch_size: images per backward pass.
    """

    mode: Literal["tokens", "samples"] = "tokens"
    draws: int = counted(1)
    floor: float = bounded(0.5, at_least=0, at_most=1)
    damping: float = bounded(0.1, at_least=0)
    order_by_diagonal: bool = True
    batch_size: int = counted(8)


@register_method
class Oac(Method):
    """GPTQ on the Hessian of the model's cross entropy instead of that of each layer's output error.

    Source: AAAI 2025 (arXiv 2405.15025), for language models, from its abstract: the Hessian of the loss by a
    layer's weight through Fisher's identity, ``sum over samples of G' G`` with G the weight's gradient;
    layers independent, rows of a weight too, their Hessians summed. Convention: the common table, static;
    activations, row scales and the log-sqrt2 attention map as `gptq`'s; 32 images; layers in order, each with
    the inputs that the quantized layers before it give.
    Deviations: gradients at the layers' outputs are taken once, from the full-precision model, and join the
    refreshed inputs, so that the cost is one backward pass; labels are drawn from the model's own prediction,
    for calibration images have none (of detectors: random directions of the neck's feature maps); a sample is
    an image. The default leaves out products of different tokens of an image (``tokens``): cheaper and
    better conditioned. Half of the matrix is GPTQ's (``floor``): a few tokens of 32 images hold most of the
    gradient, and weights that serve those alone serve unseen images less (chosen on held-out training
    images). Damping 0.1: the paper asks for more than GPTQ's, its number is not in the abstract.
    Layers behind a detector's backbone are rounded by GPTQ alone: their rows are regions that change with
    the model.
    """

    name = "oac"
    paper = "OAC: Output-adaptive Calibration for Accurate Post-training Quantization, AAAI 2025"
    fidelity = "inspired"
    family = "compensation"
    schemes = {"attention": "log-sqrt2"}
    note = "from the abstract; activations as in RepQ-ViT"
    batch = "batch_size"
    Parameters = OacParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Take full-precision gradients; RepQ-ViT's calibration; one pass in which each layer is rounded."""
        p = self.parameters
        settings = parts.OutputAdaptive(p.mode, p.draws, p.floor, p.batch_size)
        hessian_of = parts.output_adaptive_hessian(model, calibration, settings)
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
            hessian_of=hessian_of,
            progress=progress,
        )
