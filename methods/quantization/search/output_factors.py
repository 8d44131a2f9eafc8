"""One factor on the output of each layer, in closed form, folded into the scales of its weight."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.recording import Recording, record_operations
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import spread
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

AT_ONCE = 8
"""Images, or windows, whose outputs are computed at a time."""


@torch.no_grad()
def fold_output_factors(
    model: QuantizedModel,
    calibration: Calibration,
    progress: CalibrationProgress | None = None,
) -> dict[str, float]:
    """Fold the factor of `output_factor` into the weight scales of every layer, and freeze its codes.

    The codes are those of the scales before: the factor is the best one for them. Layers whose weight is in
    floating point, or not uniform, are left as they are.

    Args:
        model: every uniform weight and every input is calibrated; its quantizers are switched off.
        calibration: the images; layers see them in full precision.
        progress: called after each layer.

    Returns:
        Name of the layer -> factor.

    Raises:
        MethodError: NaN or infinite activations; the operation is named.
    """
    layers = [layer for layer in model.weighted_operations() if _has_codes(layer)]
    factors: dict[str, float] = {}
    if not layers:
        return factors
    # Weights change behind the last recording only: until then every layer sees what the trained ones give.
    for operation, recording in record_operations(model, calibration, operations=layers):
        assert isinstance(operation, WeightedOperation)
        factors[operation.name] = output_factor(operation, recording)
        if progress is not None:
            progress(len(factors), len(layers))
    for layer in layers:
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, UniformQuantizer)
        codes = quantizer.quantize(layer.weight)
        quantizer.set_parameters(quantizer.scale * factors[layer.name], quantizer.zero_point)
        layer.set_codes(codes)
    return factors


def output_factor(layer: WeightedOperation, recording: Recording) -> float:
    """Return the a of least ``|O - a O^|^2``, O the true and O^ the quantized output without the bias.

    That is ``<O, O^> / <O^, O^>``; 1 where the quantized output is zero, or has nothing of the true one.

    Args:
        layer: its quantizers are calibrated.
        recording: its input and output in full precision.
    """
    weight = _quantized(layer.weight_quantizer, layer.weight)
    inner = square = 0.0
    pairs = zip(
        torch.split(recording.inputs[0], AT_ONCE),
        torch.split(recording.output, AT_ONCE),
        strict=True,
    )
    for given, output in pairs:
        estimate = layer.compute(_quantized(layer.input_quantizer, given), weight)
        bias = 0.0 if layer.bias is None else spread(layer.bias, output, layer.output_axis)
        true, found = (output - bias).double(), (estimate - bias).double()
        inner += float((true * found).sum())
        square += float(found.square().sum())
    return inner / square if inner > 0 else 1.0


def _has_codes(layer: WeightedOperation) -> bool:
    quantizer = layer.weight_quantizer
    return isinstance(quantizer, UniformQuantizer) and not quantizer.spec.is_float


def _quantized(quantizer: Quantizer, x: Tensor) -> Tensor:
    return x if quantizer.spec.is_float else quantizer.fake_quantize(x)
