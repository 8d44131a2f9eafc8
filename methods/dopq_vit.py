"""DopQ-ViT: a tangent grid for attention maps, and a scale that outlying channels do not move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters
from vit_ptq_bench.methods.api.registry import register_method


@dataclass(frozen=True)
class DopqParameters(ReparameterizationParameters):
    """Settings of `DopqViT`."""

    scale: Literal["mean", "median"] = "median"


@register_method
class DopqViT(Method):
    """RepQ-ViT with another grid for the attention map and another common scale behind LayerNorm.

    Source: Yang et al., arXiv 2408.03291, its abstract. What that says: a tan quantizer (TanQ) keeps the
    power law of attention maps by looking more at values near 1, and the scale to reparameterize to (MOSF)
    is chosen by mean absolute deviation, without a search. What is ours: the grid's formula (uniform codes
    of a tangent, fine near 0 and near 1, angle and largest level by the error of attention x value), and the
    median of the channels' scales, from which their mean absolute deviation is least. The abstract names no
    training, so there is none; the authors' figures at three bits may rest on one. Convention: the common
    table, static.
    """

    name = "dopq-vit"
    paper = (
        "Yang et al., DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware PTQ for Vision Transformers, "
        "2024"
    )
    note = "from the abstract; the formula of its grid is this project's"
    fidelity = "inspired"
    family = "calibration"
    schemes = {"attention": "tangent"}
    Parameters = DopqParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """RepQ-ViT's calibration, then the grids of attention maps on quantized values."""
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=self.parameters.zero_point,
            scale=self.parameters.scale,
            progress=progress,
        )
        model.activate()
        images = calibration.whole()
        parts.search_tangent_maps(model.operations, lambda: model(images))
