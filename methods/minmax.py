"""Min-max calibration."""

from methods.base import Method
from methods.quantization.bits import WEIGHT_SITES, BitTable, BitWidth, equal_table
from methods.quantization.calibration import (
    Calibration,
    Progress,
    calibrate_activations,
    calibrate_weights,
)
from methods.quantization.model import QuantizedModel
from methods.quantization.ranges import minmax_rule
from methods.registry import register_method


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

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with symmetric weights."""
        return equal_table(bits).change(WEIGHT_SITES, symmetric=True)

    def calibrate(
        self, model: QuantizedModel, calibration: Calibration, progress: Progress | None = None
    ) -> None:
        """Set all scales in one full-precision pass."""
        calibrate_weights(model, minmax_rule)
        calibrate_activations(model, calibration, minmax_rule, progress=progress)
