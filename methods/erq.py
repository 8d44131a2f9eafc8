"""ERQ: error reduction by ridge regression, in activations and in weights."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitTable, BitWidth, Protocol, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.calibration.range_rules import best_percentile_rule
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import RowGrid
from vit_ptq_bench.methods.quantization.error_compensation.ridge import (
    Moments,
    outlier_columns,
    reduce_activation_error,
    reduce_weight_error,
    with_bias,
)
from vit_ptq_bench.methods.quantization.model.layers import QuantConv2d, WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.uniform import (
    DualUniformQuantizer,
    UniformQuantizer,
)
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized

WEIGHT_PERCENTILES = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0)


DUAL = ("qkv.weight", "fc1.weight")


CONVOLUTION_RIDGE = 10.0
"""How much stronger the ridge of a convolution is in the second step, as released."""


@dataclass(frozen=True)
class ErqParameters(ReparameterizationParameters):
    """Settings of `Erq`; those of the activations are RepQ-ViT's.

    Attributes:
        activation_step: reduce the error of quantized activations (Aqer).
        weight_step: reduce the error of quantized weights (Wqer); off, weights go to the nearest code.
        ridge: lambda per calibration token; 0.16 is the released example's at 32 images.
        flips: most roundings that the refinement changes per row and half; 0: no refinement.
        dual: two scales per row in qkv and fc1 weights (TPAMI version).
    """

    activation_step: bool = True
    weight_step: bool = True
    ridge: float = 0.16
    flips: int = 100
    dual: bool = True


@register_method
class Erq(Method):
    """RepQ-ViT's activations, then two closed-form repairs of each weight, no back-propagation.

    Source: Zhong et al., ICML 2024 and TPAMI 2025 (arXiv 2407.06794); confirmed from the released code.
    First each weight and bias absorbs the error of its quantized input (ridge regression), then it is
    quantized half by half with refined roundings, the other half making up for the error. Layers are
    repaired in parallel, all from full-precision inputs. Weights: best of ten percentiles per row; qkv and
    fc1 with two scales per row. Convention (authors): the common table, attention in log-sqrt2, image in
    floating point; 32 images. Deviations: the ridge grows with the number of tokens; the head has the ridge
    of all layers; layers without bias get none; Cholesky solves in float64.
    """

    name = "erq"
    paper = (
        "Zhong et al., ERQ: Error Reduction for PTQ of Vision Transformers, ICML 2024; TPAMI 2025"
    )
    fidelity = "official"
    schemes = {"attention": "log-sqrt2"}
    Parameters = ErqParameters

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the table, with dual uniform weights where they are asked for."""
        table = super().bit_table(bits, protocol)
        return table.change(DUAL, scheme="dual-uniform") if self.parameters.dual else table

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with the image in floating point."""
        return equal_table(bits).change("patch_embed.input", bits=FLOAT)

    def calibrate(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        progress: CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration, then one full-precision pass in which each layer is repaired."""
        p = self.parameters
        calibrate_reparameterized(model, calibration, zero_point=p.zero_point, scale=p.scale)
        model.activate(weights=False, activations=False)
        layers = model.weighted_operations()
        done: list[str] = []

        def visit(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Behind the layer: what follows still gets its full-precision output.
            assert isinstance(module, WeightedOperation)
            if module.name in done:  # a detector's RPN looks at several levels, the finest first
                return
            check_finite(inputs[0], f"{module.name}.input")
            self._repair(module, inputs[0])
            done.append(module.name)
            if progress is not None:
                progress(len(done), len(layers))

        with ExitStack() as stack, torch.no_grad():
            for layer in layers:
                stack.callback(layer.register_forward_hook(visit).remove)
            model(calibration.whole())

    def _repair(self, layer: WeightedOperation, x: Tensor) -> None:
        p = self.parameters
        quantizer = layer.input_quantizer
        quantized = x if quantizer.spec.is_float else quantizer.fake_quantize(x)
        moments = Moments.of(layer.columns(x), layer.columns(quantized), layer.bias is not None)
        ridge = p.ridge * moments.tokens
        matrix = with_bias(layer)
        if p.activation_step:
            matrix = reduce_activation_error(matrix, moments, ridge)
            self._store(layer, matrix)
        if layer.weight_quantizer.spec.is_float:
            return
        _calibrate_weight(layer)
        if p.weight_step:
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
            0 if convolution else self.parameters.flips,
        )
        layer.set_codes(codes)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)

    @staticmethod
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
