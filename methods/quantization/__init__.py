"""What methods are made of: bit tables, quantizers, quantized layers, calibration, search, storage."""

from methods.quantization.bits import (
    FLOAT,
    BitTable,
    BitWidth,
    Protocol,
    TensorSpec,
    equal_table,
)
from methods.quantization.calibration import (
    Calibration,
    Progress,
    calibrate_activations,
    calibrate_weights,
)
from methods.quantization.families import find_family, wrap_model
from methods.quantization.model import QuantizedModel, Site
from methods.quantization.storage import load_quantized, save_quantized

__all__ = [
    "FLOAT",
    "BitTable",
    "BitWidth",
    "Calibration",
    "Progress",
    "Protocol",
    "QuantizedModel",
    "Site",
    "TensorSpec",
    "calibrate_activations",
    "calibrate_weights",
    "equal_table",
    "find_family",
    "load_quantized",
    "save_quantized",
    "wrap_model",
]
