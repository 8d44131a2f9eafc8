"""Column-wise rounding that also makes up for what a layer's quantized input lacks of the exact one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    compensated_codes,
    grid_of,
    round_columnwise,
)
from vit_ptq_bench.methods.quantization.error_compensation.solving import ridge_solution
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import (
    LayerStreams,
    TokenWeights,
    visit_streams,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputMoments:
    """Moments of a layer's input by image folds, float64 [folds, K, K].

    Attributes:
        second: ``2 sum x x'`` of the quantized input.
        lack: ``2 sum (x_exact - x) x'``.
    """

    second: Tensor
    lack: Tensor

    @classmethod
    def of(cls, streams: LayerStreams, folds: int) -> InputMoments:
        """Return the moments of all images, an image's fold being its number modulo ``folds``.

        Raises:
            MethodError: the streams carry no exact inputs.
        """
        columns = streams.layer.weight[0].numel()
        zero = torch.zeros((), dtype=torch.float64, device=streams.layer.weight.device)
        second = zero.repeat(folds, columns, columns)
        lack = torch.zeros_like(second)
        for batch in streams.batches():
            if batch.exact is None:
                raise MethodError(f"{streams.layer.name}: no exact inputs were asked for")
            for fold in range(folds):
                chosen = batch.image % folds == fold
                x, exact = batch.x[chosen], batch.exact[chosen]
                second[fold] += 2 * (x.T @ x).double()
                lack[fold] += 2 * ((exact - x).T @ x).double()
        return cls(second, lack)


def validated_strength(weight: Tensor, moments: InputMoments, damping: float) -> float:
    """Return the strength in [0, 1] of the compensation that helps images it was not fitted on most.

    Without fold f, ``D = W L (H + damping)^-1`` (L the lack, H the second moment) is the move that makes up
    for the lack; scaled by alpha it changes the squared output error of fold f by
    ``alpha^2 <D, D H_f> - 2 alpha <D, W L_f>``. The best alpha of the sums over all folds is a quotient.

    Args:
        weight: W, float64 [R, K].
        moments: of at least two folds.
        damping: share of the mean diagonal.
    """
    linear = quadratic = 0.0
    second, lack = moments.second.sum(dim=0), moments.lack.sum(dim=0)
    for own_second, own_lack in zip(moments.second, moments.lack, strict=True):
        move = ridge_solution(second - own_second, (weight @ (lack - own_lack)).T, damping)
        linear += float((move * (weight @ own_lack)).sum())
        quadratic += float((move * (move @ own_second)).sum())
    return min(1.0, max(0.0, linear / quadratic)) if quadratic > 0 else 0.0


@dataclass(frozen=True)
class ResidualAware:
    """Rounds a layer column by column, later columns making up for errors and for what the input lacks.

    Source: GPTAQ (Li et al., ICML 2025), asymmetric calibration; the strength per layer is MARR's, here by
    cross-validation over images in closed form.

    Attributes:
        strength: of the second part, the same for all layers; None: `validated_strength`; 0: GPTQ.
        folds: of the images, for the cross-validation.
        damping: share of the mean diagonal.
        order_by_diagonal: round the columns with the largest second moment first.
    """

    strength: float | None = 1.0
    folds: int = 4
    damping: float = 0.01
    order_by_diagonal: bool = True

    def check(self, images: int) -> None:
        """Refuse a number of images that cannot be cut into the folds; raises `MethodError`."""
        if self.strength is None:
            require_folds(images, self.folds)

    def __call__(self, streams: LayerStreams) -> None:
        """Set the layer's codes, on the grid that its weight quantizer has been calibrated to."""
        layer = streams.layer
        quantizer = layer.weight_quantizer
        if quantizer.spec.is_float:
            return
        weight = layer.weight.flatten(1)
        folds = self.folds if self.strength is None else 1
        moments = InputMoments.of(streams, folds)
        strength = self.strength
        if strength is None:
            strength = validated_strength(weight.double(), moments, self.damping)
            logger.info("%s: strength %.3f", layer.name, strength)
        codes = compensated_codes(
            weight,
            grid_of(quantizer, weight),
            moments.second.sum(dim=0),
            self.damping,
            self.order_by_diagonal,
            strength * moments.lack.sum(dim=0),
        )
        layer.set_codes(codes)


def round_with_residuals(
    model: QuantizedModel,
    calibration: Calibration,
    visit: ResidualAware,
    progress: CalibrationProgress | None = None,
) -> None:
    """Round every layer by ``visit``, in order; those behind a detector's backbone by GPTQ alone.

    Args:
        model: its activations and the grids of its weights are calibrated.
        calibration: the images.
        visit: how.
        progress: called after each layer.

    Raises:
        MethodError: fewer images than folds, NaN or infinite activations, or too small a damping.
    """
    visit.check(calibration.n_images)
    visit_streams(
        model,
        calibration,
        visit,
        target="layer",
        weights=TokenWeights(inverse_power=False, read=1.0),
        exact_inputs=True,
        progress=progress,
    )
    model.activate()
    round_columnwise(
        model,
        calibration,
        damping=visit.damping,
        order_by_diagonal=visit.order_by_diagonal,
        layers=model.structure.layers_behind(),
    )


def require_folds(images: int, folds: int) -> None:
    """Refuse a cross-validation with a fold that no image is in.

    Raises:
        MethodError: there are fewer images than folds.
    """
    if images < folds:
        raise MethodError(
            f"{images} calibration images cannot be cut into {folds} folds; use more images or fewer folds",
            parameter="folds",
        )
