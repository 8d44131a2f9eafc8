"""Settings that several methods have in common, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NoParameters:
    """The parameters of a method that has none."""


@dataclass(frozen=True)
class ReparameterizationParameters:
    """Settings of `quantization.reparameterization.calibrate_reparameterized`.

    Attributes:
        zero_point: ``integer`` rounds the averaged zero point, so that codes are integers;
            ``fractional`` keeps the mean, as RepQ-ViT's released code does.
        scale: the per-tensor scale is the ``mean`` (paper) or ``median`` of the channels' scales.
    """

    zero_point: Literal["integer", "fractional"] = "integer"
    scale: Literal["mean", "median"] = "mean"
