"""FQ-ViT: power-of-two factors for LayerNorm inputs, logarithmic softmax from integer ratios."""

from torch import Tensor

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import (
    minmax_rule,
    power_of_two_factor_rule,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site


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
        model: QuantizedModel,
        calibration: Calibration,
        progress: CalibrationProgress | None = None,
    ) -> None:
        """One full-precision pass."""
        calibrate_weights(model, minmax_rule)
        calibrate_activations(model, calibration, _rule, progress=progress)


def _rule(site: Site, x: Tensor) -> None:
    if site.quantizer.spec.scheme == "power-of-two-factor":
        power_of_two_factor_rule(site, x)
    else:
        minmax_rule(site, x)
