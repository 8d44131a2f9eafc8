"""ERQ: error reduction by ridge regression, in activations and in weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitTable, BitWidth, Protocol, equal_table

DUAL = ("qkv.weight", "fc1.weight")


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
    ridge: float = bounded(0.16, at_least=0)
    flips: int = counted(100, at_least=0)
    dual: bool = True


@register_method
class Erq(Method):
    """RepQ-ViT's activations, then two closed-form repairs of each weight, no back-propagation.

    Source: Zhong et al., ICML 2024 and TPAMI 2025 (arXiv 2407.06794); confirmed from the released code.
    First each weight and bias absorbs the error of its quantized input (ridge regression), then it is
    quantized half by half with refined roundings, the other half making up for the error. Layers are
    repaired in parallel, all from full-precision inputs. Weights: best of ten percentiles per row; qkv and
    fc1 with two scales per row. Convention (authors): the common table, attention in log-sqrt2, image in
    floating point; 32 images.
    Deviations: activations are calibrated behind quantized weights, as in RepQ-ViT; the released code does it
    behind full-precision ones. A rounding is flipped to the neighbour on the other side wherever that does
    not raise the row's error; the released code flips it only where the gradient is larger than half the
    distance of both neighbours too, and leaves the row at the first where it is not. Zero points and log
    quantizer are RepQ-ViT's integer ones. ``erq-released`` undoes these three. Besides: mergings are
    reparameterized too (there norm1 and norm2 alone); the refinement's covariance is divided by n, not n - 1;
    the ridge grows with the number of tokens, and the head has that of all layers (there 0.1 over all tokens
    in the first step, 1000 in the second); layers without bias get none (the released code stops there);
    Cholesky solves in float64.
    """

    name = "erq"
    paper = (
        "Zhong et al., ERQ: Error Reduction for PTQ of Vision Transformers, ICML 2024; TPAMI 2025"
    )
    fidelity = "official"
    family = "compensation"
    schemes = {"attention": "log-sqrt2"}
    Parameters = ErqParameters
    released: ClassVar[bool] = False

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the table, with dual uniform weights where they are asked for."""
        table = super().bit_table(bits, protocol)
        return table.change(DUAL, scheme="dual-uniform") if self.parameters.dual else table

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with the image in floating point."""
        return equal_table(bits).change("patch_embed.input", bits=FLOAT)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration, then one full-precision pass in which each layer is repaired."""
        p = self.parameters
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=p.zero_point,
            scale=p.scale,
            quantized_weights=not self.released,
        )
        repair = parts.RidgeRepair(
            p.ridge, p.flips, p.activation_step, p.weight_step, steep=self.released
        )
        parts.repair_layers(model, calibration, repair, progress)


@dataclass(frozen=True)
class ReleasedParameters(ErqParameters):
    """Settings of `ErqReleased`."""

    zero_point: Literal["integer", "fractional"] = "fractional"


@register_method
class ErqReleased(Erq):
    """ERQ as the released code calibrates activations and refines roundings.

    Activations calibrated behind full-precision weights, roundings flipped only where the gradient is larger
    than half the distance of both neighbours, RepQ-ViT's released zero points and log-sqrt2 quantizer
    (2^b + 1 values): not a b-bit quantizer in the strict sense, here to compare with published figures.
    """

    name = "erq-released"
    schemes = {"attention": "log-sqrt2-plus-zero"}
    extra_levels = 1
    Parameters = ReleasedParameters
    released = True
    note = "fractional zero points and 2^b + 1 attention levels, as in the released code"
