"""How much a model loses when a single site is quantized, at every width: what bits are shared out by."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.allocation.sites import counts
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.memory import range_images
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, calibrate_weights
from vit_ptq_bench.methods.quantization.calibration.range_rules import shrink_rule
from vit_ptq_bench.methods.quantization.calibration.recording import Recording, record_operations
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import sites_of
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.search.activation_grids import calibrate_grids

WIDTHS = (2, 3, 4, 6, 8)
"""Bits that a site can get; with 5 and 7 besides it would take half as long again."""

IMAGES, RANGE_IMAGES = 16, 4
"""Images that errors are taken on, and those that the grids of a width are set from."""

STEPS, STEP = 30, 0.03
"""Ranges of a weight that are tried at a width: a third of OMSE's, which end at the same place."""

Errors = dict[str, dict[int, float]]
"""Site name -> bits -> what is lost there."""


def sensitivities(
    model: QuantizedModel,
    calibration: Calibration,
    widths: Sequence[int] = WIDTHS,
    weights_only: bool = False,
) -> Errors:
    """Return what the loss grows by when one site alone is quantized, to second order.

    For a site of an operation with full-precision output ``y`` and output ``y_b`` with that site at b bits:
    ``1/2 sum g^2 (y_b - y)^2`` per image, g being the gradient of `fisher_loss` at the output; its square is
    the diagonal of the loss's Hessian in expectation (as in BRECQ, Li et al. 2021, equation 10). Errors of
    different sites are taken to add up. The grids are those of least error: weights' by `shrink_rule`,
    activations' by `calibrate_grids`.

    Args:
        model: the wrapped model in the shape in which it will be quantized; quantizers are inactive
            afterwards, and their ranges as they were.
        calibration: the images, of which the first `IMAGES` are looked at.
        widths: the bits to look at.
        weights_only: of weights alone.

    Returns:
        Of every quantized site but the image, or of every quantized weight.

    Raises:
        MethodError: NaN or infinite activations or gradients.
    """
    calibration = calibration.first(IMAGES)
    grids = {bits: grids_at(model, calibration, bits, weights_only) for bits in widths}
    errors: Errors = {}
    for operation, recording in record_operations(model, calibration, fisher_loss):
        for bits, quantizers in grids.items():
            with in_place([operation], quantizers):
                for name, error in _errors(operation, recording, quantizers):
                    errors.setdefault(name, {})[bits] = error / calibration.n_images
    model.activate(weights=False, activations=False)
    return {site.name: errors[site.name] for site in model.sites() if site.name in errors}


def grids_at(
    model: QuantizedModel,
    calibration: Calibration,
    bits: int,
    weights_only: bool = False,
    weight_rule: RangeRule | None = None,
) -> dict[str, Quantizer]:
    """Return quantizers of least error at one width for all sites that are quantized, by site name.

    Args:
        model: the wrapped model; keeps its own quantizers, inactive.
        calibration: the images, of which the first `RANGE_IMAGES` are looked at.
        bits: the width.
        weights_only: for weights alone.
        weight_rule: sets the weights' ranges; `shrink_rule` where there is none.
    """
    sites = [site for site in model.sites() if counts(site)]
    sites = [site for site in sites if site.is_weight or not weights_only]
    new = {site.name: _at_width(site.quantizer, bits) for site in sites}
    few = calibration.first(min(RANGE_IMAGES, range_images(model, calibration)))
    with in_place(model.operations, new):
        calibrate_weights(model, weight_rule or shrink_rule(STEPS, STEP))
        if not weights_only:
            calibrate_grids(model, few)
    model.activate(weights=False, activations=False)
    return new


def _at_width(quantizer: Quantizer, bits: int) -> Quantizer:
    return type(quantizer)(replace(quantizer.spec, bits=bits), quantizer.site, quantizer.axis)


@contextmanager
def in_place(operations: Iterable[QuantOperation], new: Mapping[str, Quantizer]) -> Iterator[None]:
    """Put quantizers in the place of those of their names, and those back at the end."""
    kept = []
    for operation in operations:
        for attribute, quantizer in list(operation.named_children()):
            if isinstance(quantizer, Quantizer) and quantizer.site in new:
                kept.append((operation, attribute, quantizer))
                setattr(operation, attribute, new[quantizer.site])
    try:
        yield
    finally:
        for operation, attribute, quantizer in kept:
            setattr(operation, attribute, quantizer)


@torch.no_grad()
def _errors(
    operation: QuantOperation, recording: Recording, own: Container[str]
) -> Iterator[tuple[str, float]]:
    """The weighted error of the output with one of the operation's quantizers active, for each of ``own``."""
    assert recording.squared_gradient is not None
    sites = list(sites_of([operation]))
    for quantizer in (site.quantizer for site in sites if site.name in own):
        for site in sites:
            site.quantizer.active = site.quantizer is quantizer
        difference: Tensor = operation(*recording.inputs) - recording.output
        error = difference.square_().mul_(recording.squared_gradient).sum(dtype=torch.float64)
        yield quantizer.site, 0.5 * float(error)
