"""FQ-ViT: power-of-two factors for LayerNorm inputs, logarithmic softmax from integer ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, equal_table

if TYPE_CHECKING:
    from torch import Tensor


@register_method
class FqVit(Method):
    """Min-max ranges, Log-Int-Softmax for the attention map, Power-of-Two Factor before LayerNorm.

    Source: Lin et al., IJCAI 2022 (arXiv 2111.13824); forms confirmed from the released code.
    Convention (authors): weights symmetric per output channel, activations affine per tensor, static, and
    also the inputs of LayerNorm (the residual stream), per channel with steps that differ by powers of two;
    1000 images. Under the common table LayerNorm inputs stay in floating point, as for every method, so the
    Power-of-Two Factor shows under protocol ``authors`` alone. The paper's 4 bits are the attention map's in
    a W8A8 model; here the map has the activation bits.
    Deviations: exact extreme values instead of a moving average over batches; the softmax that gives the
    ratios and the LayerNorm behind its quantized input are computed in floating point, not in integers (the
    paper's polynomial for exp is within 0.35 % of it); residual sums and position embeddings are not
    quantized apart.
    """

    name = "fq-vit"
    paper = "Lin et al., FQ-ViT: PTQ for Fully Quantized Vision Transformer, IJCAI 2022"
    fidelity = "reimplementation"
    family = "calibration"
    calibration_images = 1000
    schemes = {"attention": "log-int-softmax"}
    note = "LayerNorm inputs are quantized under protocol authors only"

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the paper, with its LayerNorm inputs."""
        table = equal_table(bits).change(WEIGHT_SITES, symmetric=True)
        scheme = "power-of-two-factor"
        return table.change(
            "norm.input", bits=bits.activation, granularity="channel", scheme=scheme
        )

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """One full-precision pass."""
        parts.calibrate_weights(model, parts.minmax_rule)
        parts.calibrate_activations(model, calibration, _rule, progress=progress)


def _rule(site: parts.Site, x: Tensor) -> None:
    if site.quantizer.spec.scheme == "power-of-two-factor":
        parts.power_of_two_factor_rule(site, x)
    else:
        parts.minmax_rule(site, x)
