"""ERQ's repair of whole layers: the two ridge regressions of `ridge`, put to a model's layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.range_rules import best_percentile_rule
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import RowGrid
from vit_ptq_bench.methods.quantization.error_compensation.ridge import (
    Moments,
    outlier_columns,
    reduce_activation_error,
    reduce_weight_error,
    with_bias,
)
from vit_ptq_bench.methods.quantization.error_compensation.visiting import visit_layers
from vit_ptq_bench.methods.quantization.model.layers import QuantConv2d, WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.uniform import (
    DualUniformQuantizer,
    UniformQuantizer,
)

WEIGHT_PERCENTILES = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0)

CONVOLUTION_RIDGE = 10.0
"""How much stronger the ridge of a convolution is in the second step, as released."""


@dataclass(frozen=True)
class RidgeRepair:
    """ERQ's two closed-form repairs of one layer (Zhong et al., ICML 2024).

    Attributes:
        ridge: lambda per calibration token.
        flips: most roundings that the refinement changes per row and half; 0: no refinement. Convolutions
            have none.
        activation_step: let weight and bias absorb the error of the quantized input (Aqer).
        weight_step: quantize the weight half by half, the other half making up for the error (Wqer); off,
            weights go to the nearest code.
        steep: the refinement changes a rounding only where its gradient is steep (`ridge.refine`).
    """

    ridge: float
    flips: int
    activation_step: bool = True
    weight_step: bool = True
    steep: bool = False

    def __call__(self, layer: WeightedOperation, x: Tensor) -> None:
        """Repair ``layer``, whose activation quantizers are calibrated, for its full-precision input ``x``.

        Raises:
            MethodError: the ridge is too small for the layer's second moment.
        """
        quantizer = layer.input_quantizer
        quantized = x if quantizer.spec.is_float else quantizer.fake_quantize(x)
        moments = Moments.of(layer.columns(x), layer.columns(quantized), layer.bias is not None)
        ridge = self.ridge * moments.tokens
        matrix = with_bias(layer)
        if self.activation_step:
            matrix = reduce_activation_error(matrix, moments, ridge)
            _store(layer, matrix)
        if layer.weight_quantizer.spec.is_float:
            return
        _calibrate_weight(layer)
        if self.weight_step:
            self._quantize(layer, matrix, moments, ridge)

    def _quantize(
        self, layer: WeightedOperation, matrix: Tensor, moments: Moments, ridge: float
    ) -> None:
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, UniformQuantizer)
        weight = layer.weight.flatten(1)
        convolution = isinstance(layer, QuantConv2d)
        codes, bias = reduce_weight_error(
            matrix,
            weight.shape[1],
            RowGrid.of(quantizer, weight),
            moments,
            ridge * (CONVOLUTION_RIDGE if convolution else 1.0),
            0 if convolution else self.flips,
            self.steep,
        )
        layer.set_codes(codes)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)


def repair_layers(
    model: QuantizedModel,
    calibration: Calibration,
    repair: RidgeRepair,
    progress: CalibrationProgress | None = None,
) -> None:
    """Repair every layer in one full-precision pass, each from its full-precision input.

    Args:
        model: its activations are calibrated; it is left with all quantizers inactive, and with repaired
            weights, as codes where ``repair.weight_step``.
        calibration: the images, shown as one batch.
        repair: what is done to each layer.
        progress: called after each layer.

    Raises:
        MethodError: NaN or infinite activations, or too small a ridge.
    """
    model.activate(weights=False, activations=False)
    layers = model.weighted_operations()
    visit_layers(model, calibration, layers, repair, behind=True, progress=progress)


def _store(layer: WeightedOperation, matrix: Tensor) -> None:
    columns = layer.weight[0].numel()
    layer.weight.copy_(matrix[:, :columns].reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(matrix[:, -1])


def _calibrate_weight(layer: WeightedOperation) -> None:
    """Give each row the best percentile range; with dual uniform weights, one per kind of column."""
    quantizer = layer.weight_quantizer
    rule = best_percentile_rule(WEIGHT_PERCENTILES)
    key = f"{layer.role}.weight"
    rule(Site(quantizer.site, key, quantizer, layer), layer.weight)
    if not isinstance(quantizer, DualUniformQuantizer):
        return
    weight = layer.weight.flatten(1)
    outliers = outlier_columns(weight)
    if not bool(outliers.any()):
        return
    parts = []
    for columns in (~outliers, outliers):
        part = UniformQuantizer(replace(quantizer.spec, scheme="uniform"), quantizer.site, axis=0)
        rule(Site(part.site, key, part, layer), weight[:, columns])
        parts.append(part)
    quantizer.set_dual(parts[0], parts[1], outliers)
