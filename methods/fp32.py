"""The full-precision reference."""

from methods.base import Method
from methods.quantization.bits import FLOAT, BitTable, BitWidth, Protocol, equal_table
from methods.quantization.calibration import Calibration, Progress
from methods.quantization.model import QuantizedModel
from methods.registry import register_method


@register_method
class FullPrecision(Method):
    """The model as it is, in float32: the row every other one is compared with."""

    name = "fp32"
    paper = "the unquantized model"
    fidelity = "reference"
    calibration_images = 0
    note = "not quantized"

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return a table that leaves every site in floating point, whatever is asked."""
        return equal_table(BitWidth(FLOAT, FLOAT))

    def calibrate(
        self, model: QuantizedModel, calibration: Calibration, progress: Progress | None = None
    ) -> None:
        """Do nothing."""
