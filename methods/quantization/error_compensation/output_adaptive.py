"""Second moments of a layer's input that say what a weight's error does to the prediction.

A layer's rows x_t of one image, with g_t the gradient of the prediction's loss at the output of row t, give
the gradient of its weight ``G = sum_t g_t x_t'``. By Fisher's identity ``sum over images of G' G`` is the
Hessian of the loss by the weight, summed over the weight's rows (OAC). Without the products of different rows
of an image it is ``sum_t |g_t|^2 x_t x_t'``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.output_gradients import (
    row_gradients,
    row_powers,
)
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    HessianOf,
    second_moment,
)
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel


@dataclass(frozen=True)
class OutputAdaptive:
    """How a layer's second moment follows from gradients at its output.

    Source: OAC (AAAI 2025, arXiv 2405.15025), from the abstract.

    Attributes:
        mode: ``samples``: gradients of the weight, one per image; ``tokens``: each row by itself.
        draws: of the prediction's labels, the mean of which is taken.
        floor: share of the plain second moment; the rest is of the gradients, brought to the same size.
            1: GPTQ's.
        batch_size: images per backward pass.
    """

    mode: Literal["samples", "tokens"] = "tokens"
    draws: int = 1
    floor: float = 0.0
    batch_size: int = 8


def output_adaptive_hessian(
    model: QuantizedModel, calibration: Calibration, settings: OutputAdaptive
) -> HessianOf:
    """Return what gives the second moment of a layer's input, gradients being those of the model as it is.

    Whatever keeps the layers' full-precision outputs may be done to the model afterwards; rows are those that
    the layer then gets. Layers behind a detector's backbone, whose rows are regions that the model proposes,
    have the plain second moment.

    Args:
        model: with its full-precision weights; its quantizers are switched off.
        calibration: the images; their seed decides the draws.
        settings: how.

    Returns:
        Called with a layer and the rows of all images, in order ([n, K]), it gives float64 [K, K]; in mode
        ``samples`` once for a layer.

    Raises:
        MethodError: no gradient reaches a layer, or an output is NaN or infinite; the layer is named. Mode
            ``samples`` raises it when the layer's turn comes.
    """
    layers = layers_with_gradient(model)
    if not layers:
        return plain
    if settings.mode == "tokens":
        powers = row_powers(model, calibration, layers, settings.draws, settings.batch_size)
        return _ByTokens(powers, settings.floor)
    return _BySamples(model, calibration, settings)


def layers_with_gradient(model: QuantizedModel) -> Sequence[WeightedOperation]:
    """Return the layers with quantized weights whose output rows are the same whatever is quantized."""
    regions = set()
    if model.structure.tail is not None:
        regions = {layer.name for layer in model.structure.layers_behind()}
    return [
        layer
        for layer in model.weighted_operations()
        if not layer.weight_quantizer.spec.is_float and layer.name not in regions
    ]


def plain(layer: WeightedOperation, rows: Tensor) -> Tensor:
    """Return GPTQ's second moment, float64 [K, K], of rows [n, K]."""
    return second_moment(rows)


def weighted_second_moment(rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``2 sum_t w_t x_t x_t'``, float64 [K, K], of rows [n, K] with weights [n] from 0 up."""
    return second_moment(rows * weights.sqrt()[:, None])


def sample_second_moment(rows: Tensor, gradients: Tensor) -> Tensor:
    """Return ``2 sum G' G`` over images, mean over draws, with ``G = sum_t g_t x_t'``.

    Args:
        rows: of all images, [images * rows of an image, K].
        gradients: at the layer's output, [images, draws, rows of an image, C_out].

    Returns:
        float64 [K, K].
    """
    images, draws = gradients.shape[:2]
    moment = torch.zeros(2 * rows.shape[-1:], dtype=torch.float64, device=rows.device)
    for x, gradient in zip(rows.reshape(images, -1, rows.shape[-1]), gradients, strict=True):
        of_weight = (gradient.to(x.device).transpose(-2, -1) @ x).flatten(0, 1)
        moment += second_moment(of_weight)
    return moment / draws


class _ByTokens:
    """Mode ``tokens``; see `OutputAdaptive`."""

    def __init__(self, powers: dict[str, Tensor], floor: float) -> None:
        self._weights = {
            name: floor + (1 - floor) * (power.mean(dim=1) / power.mean()).flatten()
            for name, power in powers.items()
        }

    def __call__(self, layer: WeightedOperation, rows: Tensor) -> Tensor:
        weights = self._weights.get(layer.name)
        if weights is None:
            return second_moment(rows)
        return weighted_second_moment(rows, weights.to(rows.device))


class _BySamples:
    """Mode ``samples``; see `OutputAdaptive`.

    Gradients of all layers take more than a model may, so they come from a copy of the model, when they are
    asked for.
    """

    def __init__(
        self, model: QuantizedModel, calibration: Calibration, settings: OutputAdaptive
    ) -> None:
        exact = copy.deepcopy(model)
        layers = layers_with_gradient(exact)
        self._floor = settings.floor
        self._names = {layer.name for layer in layers}
        self._held: dict[str, Tensor] = {}
        self._coming = row_gradients(
            exact, calibration, layers, settings.draws, settings.batch_size
        )

    def __call__(self, layer: WeightedOperation, rows: Tensor) -> Tensor:
        own = second_moment(rows)
        if layer.name not in self._names:
            return own
        while layer.name not in self._held:
            name, gradient = next(self._coming)
            self._held[name] = gradient
        gradient = self._held.pop(layer.name)
        size = gradient.square().sum(dim=-1).mean().sqrt()
        adaptive = sample_second_moment(rows, gradient / size)
        return self._floor * own + (1 - self._floor) * adaptive
