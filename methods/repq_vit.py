"""RepQ-ViT: scale reparameterization."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vit_ptq_bench.methods.api.method import Fidelity, Method
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import best_percentile_rule
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import NormLink
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reparameterization import (
    PERCENTILES,
    _foldable,
    _tensor_quantizer,
    _use_channels,
)


@dataclass(frozen=True)
class RepQParameters:
    """Settings of `RepQViT`.

    Attributes:
        zero_point: ``integer`` rounds the averaged zero point, so that codes are integers;
            ``fractional`` keeps the mean, as the released code does.
        scale: the per-tensor scale is the ``mean`` (paper) or ``median`` of the channels' scales.
    """

    zero_point: Literal["integer", "fractional"] = "integer"
    scale: Literal["mean", "median"] = "mean"


@register_method
class RepQViT(Method):
    """Quantize LayerNorm outputs per channel, then fold the channels' scales into LayerNorm and weight.

    Source: Li et al., ICCV 2023 (arXiv 2212.08254); algorithm confirmed from the released code.
    Convention: the common table (every weight per output channel, activations per tensor, affine, static;
    8-bit image; head at the activation bits), attention in log-sqrt2; 32 images. Every quantizer starts
    from the percentile (0.999, 0.9999, 0.99999) of least squared error and sees quantized predecessors.
    Deviations: the averaged zero point is rounded and the log quantizer has 2^b values, so that W4A4 means
    4-bit integers; ``repq-vit-released`` keeps the released code's fractional zero point and 2^b + 1 values.
    """

    name: ClassVar[str] = "repq-vit"
    paper = (
        "Li et al., RepQ-ViT: Scale Reparameterization for PTQ of Vision Transformers, ICCV 2023"
    )
    fidelity: ClassVar[Fidelity] = "official"
    detection_images: ClassVar[int | None] = 1
    schemes = {"attention": "log-sqrt2"}
    Parameters = RepQParameters

    def calibrate(
        self,
        model: QuantizedModel,
        calibration: Calibration,
        progress: CalibrationProgress | None = None,
    ) -> None:
        """One forward pass with per-channel LayerNorm outputs, then fold, then weights once more."""
        rule = best_percentile_rule(PERCENTILES)
        links = [link for link in model.structure.norm_links if _foldable(link)]
        for link in links:
            _use_channels(link)
        calibrate_weights(model, rule)
        model.activate(weights=True, activations=False)
        calibrate_activations(model, calibration, rule, sequential=True, progress=progress)
        for link in links:
            self._reparameterize(link)
        calibrate_weights(model, rule)

    def _reparameterize(self, link: NormLink) -> None:
        quantizer = link.reader.input_quantizer
        assert isinstance(quantizer, UniformQuantizer)
        scales, zero_points = quantizer.scale, quantizer.zero_point.float()
        scale = scales.mean() if self.parameters.scale == "mean" else scales.median()
        zero_point = zero_points.mean()
        if self.parameters.zero_point == "integer":
            zero_point = zero_point.round()
        fold_into_reader(link, scales / scale, scales * (zero_points - zero_point))
        link.reader.input_quantizer = _tensor_quantizer(quantizer, scale, zero_point)


@dataclass(frozen=True)
class ReleasedParameters(RepQParameters):
    """Settings of `RepQViTReleased`."""

    zero_point: Literal["integer", "fractional"] = "fractional"


@register_method
class RepQViTReleased(RepQViT):
    """RepQ-ViT exactly as the released code computes it.

    Fractional averaged zero point (codes are not integers) and a log-sqrt2 quantizer of 2^b codes plus an
    exact zero. Not a b-bit quantizer in the strict sense; here to compare with published figures.
    """

    name = "repq-vit-released"
    schemes = {"attention": "log-sqrt2-plus-zero"}
    Parameters = ReleasedParameters
    note = "fractional zero points and 2^b + 1 attention levels, as in the released code"
