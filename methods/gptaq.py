"""GPTAQ: column-wise rounding that also makes up for quantized inputs, on RepQ-ViT's activations."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    INPUT_SITES,
    OPERAND_ROLES,
    BitTable,
    BitWidth,
    equal_table,
)


@dataclass(frozen=True)
class GptaqParameters(ReparameterizationParameters):
    """Settings of `Gptaq`; those of the activations are RepQ-ViT's.

    Attributes:
        strength: of the compensation for what the quantized input lacks: 1 as the paper derives it, 0.25 as
            its released code has it, 0 is GPTQ.
        damping: added to the diagonal of the second moment, as a share of its mean; the authors' for vision
            transformers.
        order_by_diagonal: round the columns with the largest second moment first.
    """

    strength: float = bounded(0.25, at_least=0, at_most=1)
    damping: float = bounded(0.1, at_least=0)
    order_by_diagonal: bool = True


@register_method
class Gptaq(Method):
    """GPTQ whose later columns also make up for the difference of full-precision and quantized input.

    Source: Li et al., ICML 2025 (arXiv 2504.02692): asymmetric calibration. Two streams of activations, the
    full-precision model's and the quantized prefix's; each layer is rounded so that on the quantized input it
    gives what the full-precision layer gives on the exact one. Facts of the released code for vision
    transformers: the second part is scaled by 0.25, damping 0.1, columns by descending diagonal, inputs of
    linear layers per token at run time, attention products and classifier in floating point. Convention:
    authors: those; ``equal``: the common table, activations and the log-sqrt2 attention map as RepQ-ViT's;
    128 images. Deviations: row scales as `gptq`'s (least squared error of 90 shrunk ranges); the patch
    embedding is rounded too.
    """

    name = "gptaq"
    paper = "Li et al., GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration, ICML 2025"
    fidelity = "reimplementation"
    family = "compensation"
    calibration_images = 128
    detection_images = 32
    schemes = {"attention": "log-sqrt2"}
    note = "activations as in RepQ-ViT"
    Parameters = GptaqParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the released code for vision transformers."""
        table = equal_table(bits).change(INPUT_SITES, granularity="token", dynamic=True)
        floating = (*OPERAND_ROLES, "head.weight", "head.input", "patch_embed.input")
        return table.change(floating, bits=FLOAT, granularity="tensor", dynamic=False)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration, then layer by layer with two streams."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            weight_rule=parts.shrink_rule(),
        )
        visit = parts.ResidualAware(
            p.strength, damping=p.damping, order_by_diagonal=p.order_by_diagonal
        )
        parts.round_with_residuals(model, calibration, visit, progress)
