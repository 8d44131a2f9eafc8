"""Rows of quantized weights that keep mean and standard deviation of the rows that they stand for (PWLQ)."""

from __future__ import annotations

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.error_compensation.visiting import visit_layers
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.levels import LevelQuantizer


def keep_row_moments(
    model: QuantizedModel,
    calibration: Calibration,
    progress: CalibrationProgress | None = None,
) -> None:
    """Set the codes of every weight on a table of levels, its rows' moments those of the weight.

    The codes are the nearest ones; then the row's scale is multiplied by ``std(w) / std(w^)``, and what the
    mean lacks, ``d = mean(w) - mean(w^)``, goes into the bias as ``d sum_k E[x_k]``, E over the tokens of the
    layer's quantized input. Source: PWLQ's bias correction, which shifts the weight by d itself.

    Args:
        model: its weights are calibrated; active quantizers are those that the layers' inputs go through.
        calibration: the images, shown as one batch.
        progress: called after each layer.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    layers = [
        layer
        for layer in model.weighted_operations()
        if isinstance(layer.weight_quantizer, LevelQuantizer)
        and not layer.weight_quantizer.spec.is_float
    ]
    if layers:
        visit_layers(model, calibration, layers, _keep_moments, progress=progress)


def _keep_moments(layer: WeightedOperation, x: Tensor) -> None:
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, LevelQuantizer)
    exact = layer.weight.detach().flatten(1)
    codes = quantizer.quantize(layer.weight)
    values = quantizer.dequantize(codes).flatten(1)
    if quantizer.groups == len(exact):  # a scale that rows share is no row's own
        spread, own = (part.std(dim=1, correction=0) for part in (exact, values))
        ratio = torch.where((spread > 0) & (own > 0), spread / own, 1.0)
        quantizer.scale = quantizer.scale * ratio
    layer.set_codes(codes)
    lack = exact.mean(dim=1) - layer.weight.flatten(1).mean(dim=1)
    mean = layer.columns(layer.input_quantizer(x)).mean(dim=0)
    bias = layer.ensure_bias()
    bias.copy_(bias + lack * mean.sum())
