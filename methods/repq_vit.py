"""RepQ-ViT: scale reparameterization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters
from vit_ptq_bench.methods.api.registry import register_method


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

    name = "repq-vit"
    paper = (
        "Li et al., RepQ-ViT: Scale Reparameterization for PTQ of Vision Transformers, ICCV 2023"
    )
    fidelity = "official"
    family = "transformation"
    detection_images = 1
    schemes = {"attention": "log-sqrt2"}
    Parameters = ReparameterizationParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """One forward pass with per-channel LayerNorm outputs, then fold, then weights once more."""
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=self.parameters.zero_point,
            scale=self.parameters.scale,
            progress=progress,
        )


@dataclass(frozen=True)
class ReleasedParameters(ReparameterizationParameters):
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
    extra_levels = 1
    Parameters = ReleasedParameters
    note = "fractional zero points and 2^b + 1 attention levels, as in the released code"
