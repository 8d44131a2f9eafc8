"""A whole calibration in closed form: transforms, grids, weights solved layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.memory import range_images
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.error_compensation.resolve import Resolve, resolve_layers
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import Target, TokenWeights
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.search.activation_grids import calibrate_grids
from vit_ptq_bench.methods.quantization.transforms.apply import (
    apply_transforms,
    transform_problem,
)

TRANSFORMS = ("rotate-residual", "shift-norms", "rotate-heads", "equalise-heads")
"""In this order: the fold is better behind the rotation, and the mixing of values undoes their rotation."""


@dataclass(frozen=True)
class ClosedForm:
    """What is done, in order.

    Attributes:
        transforms: names; those that a model has no structure for are left out.
        resolve: what is done to each weight.
        target, weights: as in `visit_streams`.
    """

    transforms: Sequence[str] = TRANSFORMS
    resolve: Resolve = field(default_factory=Resolve)
    target: Target = "stream"
    weights: TokenWeights = field(default_factory=TokenWeights)


def calibrate_closed_form(
    model: QuantizedModel,
    calibration: Calibration,
    settings: ClosedForm,
    progress: CalibrationProgress | None = None,
) -> None:
    """Calibrate everything without training (docs/rose.md).

    Transforms keep the full-precision function, `calibrate_grids` sets the activations from it, then
    `resolve_layers` takes the layers in order.

    Args:
        model: the wrapped model, quantizers inactive; its weights end as codes.
        calibration: the images; transforms and grids look at `range_images` of them.
        settings: what is done.
        progress: called after each layer.

    Raises:
        MethodError: fewer images than folds, or NaN or infinite weights or activations.
    """
    settings.resolve.check(calibration.n_images)
    _prepare(model, calibration, settings)
    _solve(model, calibration, settings, progress)


def start_closed_form(
    model: QuantizedModel,
    calibration: Calibration,
    settings: ClosedForm,
    progress: CalibrationProgress | None = None,
) -> QuantizedModel:
    """`calibrate_closed_form` for a reconstruction to go on from; return the full-precision teacher.

    Weights stay in floating point, each within the cell of the code that was found for it.
    """
    settings = replace(settings, resolve=replace(settings.resolve, keep_open=True))
    settings.resolve.check(calibration.n_images)
    _prepare(model, calibration, settings)
    teacher = copy.deepcopy(model)
    _solve(model, calibration, settings, progress)
    return teacher


def _prepare(model: QuantizedModel, calibration: Calibration, settings: ClosedForm) -> None:
    for layer in model.weighted_operations():
        check_finite(layer.weight, f"{layer.name}.weight")
    few = calibration.first(range_images(model, calibration))
    names = [name for name in settings.transforms if transform_problem(name, model) is None]
    apply_transforms(model, names, few)
    calibrate_grids(model, few)


def _solve(
    model: QuantizedModel,
    calibration: Calibration,
    settings: ClosedForm,
    progress: CalibrationProgress | None,
) -> None:
    resolve_layers(
        model,
        calibration,
        settings.resolve,
        target=settings.target,
        weights=settings.weights,
        progress=progress,
    )
