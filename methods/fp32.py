"""The full-precision reference."""

from __future__ import annotations

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitTable, BitWidth, Protocol, equal_table


@register_method
class FullPrecision(Method):
    """The model as it is, in float32: the row every other one is compared with."""

    name = "fp32"
    paper = "the unquantized model"
    fidelity = "reference"
    family = "reference"
    calibration_images = 0
    note = "not quantized"

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return a table that leaves every site in floating point, whatever is asked."""
        return equal_table(BitWidth(FLOAT, FLOAT))

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Do nothing."""
