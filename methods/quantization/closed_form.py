"""A whole calibration in closed form: transforms, grids, weights solved layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.memory import range_images
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, check_finite
from vit_ptq_bench.methods.quantization.calibration.range_rules import best_percentile_rule
from vit_ptq_bench.methods.quantization.calibration.stable_rules import (
    StableRule,
    chunked_percentile_rule,
)
from vit_ptq_bench.methods.quantization.error_compensation.resolve import (
    Resolve,
    Strength,
    resolve_layers,
)
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import (
    Target,
    TokenWeights,
    Visit,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.reparameterization import PERCENTILES
from vit_ptq_bench.methods.quantization.search.activation_grids import calibrate_grids
from vit_ptq_bench.methods.quantization.transforms.apply import (
    apply_transforms,
    transform_problem,
)

TRANSFORMS = ("rotate-residual", "shift-norms", "rotate-heads", "equalise-heads")
"""In this order: the fold is better behind the rotation, and the mixing of values undoes their rotation."""

STRENGTH = Strength(2.0)
"""As good as a cross-validated one at three and four bits (ViT-Tiny), and needs no eigenvalues."""

Ranges = Literal["searched", "percentile", "stable", "chunked-percentile"]
"""Of activations on uniform grids: ``searched`` (`calibrate_grids`), or by one of `PLAIN_RULES`."""

PLAIN_RULES: dict[str, Callable[[], RangeRule]] = {
    "percentile": lambda: best_percentile_rule(PERCENTILES),
    "stable": StableRule,
    "chunked-percentile": chunked_percentile_rule,
}
"""Name -> makes a rule that looks at the tensor alone."""


@dataclass(frozen=True)
class ClosedForm:
    """What is done, in order.

    Attributes:
        transforms: names; those that a model has no structure for are left out.
        resolve: what is done to each weight.
        target, weights: as in `visit_streams`.
        ranges: of activations on uniform grids.
        before: changes a layer's weight, in floating point, before it is solved.
    """

    transforms: Sequence[str] = TRANSFORMS
    resolve: Resolve = field(default_factory=lambda: Resolve(STRENGTH))
    target: Target = "stream"
    weights: TokenWeights = field(default_factory=TokenWeights)
    ranges: Ranges = "searched"
    before: Visit | None = None


def calibrate_closed_form(
    model: QuantizedModel,
    calibration: Calibration,
    settings: ClosedForm,
    progress: CalibrationProgress | None = None,
) -> None:
    """Calibrate everything without training (docs/rose.md): `transform`, then `solve`.

    Args:
        model: the wrapped model, quantizers inactive; its weights end as codes.
        calibration: the images; transforms and grids look at `range_images` of them.
        settings: what is done.
        progress: called after each layer.

    Raises:
        MethodError: fewer images than folds, or NaN or infinite weights or activations.
    """
    settings.resolve.check(calibration.n_images)
    transform(model, calibration, settings.transforms)
    solve(model, calibration, settings, progress)


def transform(model: QuantizedModel, calibration: Calibration, names: Sequence[str]) -> None:
    """Apply those of the transforms ``names`` that the model has the structure for.

    Raises:
        MethodError: an unknown name, or NaN or infinite weights or activations.
    """
    for layer in model.weighted_operations():
        check_finite(layer.weight, f"{layer.name}.weight")
    possible = [name for name in names if transform_problem(name, model) is None]
    apply_transforms(model, possible, calibration.first(range_images(model, calibration)))


def solve(
    model: QuantizedModel,
    calibration: Calibration,
    settings: ClosedForm,
    progress: CalibrationProgress | None = None,
) -> None:
    """Set the grids of a transformed model from its full-precision activations, then solve its weights.

    With `Resolve.keep_open` weights stay in floating point, each within the cell of the code found for it,
    for a reconstruction to go on from; what gives its targets is a copy of the model made before.

    Arguments and errors as `calibrate_closed_form`.
    """
    settings.resolve.check(calibration.n_images)
    plain = None if settings.ranges == "searched" else PLAIN_RULES[settings.ranges]()
    calibrate_grids(model, calibration.first(range_images(model, calibration)), plain)
    resolve_layers(
        model,
        calibration,
        settings.resolve,
        target=settings.target,
        weights=settings.weights,
        before=settings.before,
        progress=progress,
    )
