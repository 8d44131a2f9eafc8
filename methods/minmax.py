"""Min-max calibration."""

from __future__ import annotations

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, equal_table


@register_method
class MinMax(Method):
    """Scales from the extreme values of full-precision weights and activations.

    Source: the baseline of every PTQ paper; here as in FQ-ViT (Lin et al., IJCAI 2022).
    Convention (authors): symmetric weights per output channel, affine static activations per tensor.
    Deviation: FQ-ViT averages the extremes of its batches with momentum 0.01; here the extremes are
    those of the whole calibration set, which does not depend on the batch size.
    """

    name = "minmax"
    paper = "Lin et al., FQ-ViT, IJCAI 2022 (baseline)"
    fidelity = "reimplementation"
    family = "calibration"

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric weights."""
        return equal_table(bits).change(WEIGHT_SITES, symmetric=True)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set all scales in one full-precision pass."""
        parts.calibrate_weights(model, parts.minmax_rule)
        parts.calibrate_activations(model, calibration, parts.minmax_rule, progress=progress)
