"""The figures of every site of a model, in one forward pass of the calibration images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.memory import require_room
from vit_ptq_bench.methods.quantization.calibration.passes import (
    RangeRule,
    check_finite,
    needs_calibration,
    visit_sites,
)
from vit_ptq_bench.methods.quantization.inspection.measures import (
    asymmetry,
    average_precision,
    channel_mismatch,
    channels_of,
    clipped_share,
    sqnr,
)
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site


@dataclass(frozen=True)
class SiteFigures:
    """What was measured at one site; None where a figure does not exist.

    Attributes:
        site: its name in the model.
        key: its key in bit tables.
        bits: 2 to 8, or 32.
        mismatch: largest over mean range of the channels; see `measures.channel_mismatch`.
        precision: mean range of the channels over that of the tensor, 0 to 1.
        sqnr: what is left after quantization, dB; infinite where nothing is lost, None at 32 bits and of a
            weight that was rounded unseen (`WeightedOperation.keeps_unrounded`).
        clipped: share of the entries beyond the grid, 0 to 1.
        asymmetry: ``|mean|`` over standard deviation.
    """

    site: str
    key: str
    bits: int
    mismatch: float | None
    precision: float | None
    sqnr: float | None
    clipped: float | None
    asymmetry: float | None

    @property
    def is_weight(self) -> bool:
        """Whether the tensor is a weight (else an activation)."""
        return self.key.endswith(".weight")


@torch.no_grad()
def inspect_sites(
    model: QuantizedModel,
    calibration: Calibration,
    rule: RangeRule | None = None,
    progress: CalibrationProgress | None = None,
) -> list[SiteFigures]:
    """Return the figures of every site, in execution order; the model is left calibrated by ``rule``.

    Args:
        model: the wrapped model. Activations are what arrives at each quantizer with what is in front of it
            as it is: in full precision where quantizers are inactive, else quantized.
        calibration: the images; one forward pass of all at once.
        rule: sets each quantizer's range just before it is measured; None: all have been calibrated.
        progress: called after each activation.

    Raises:
        MethodError: NaN or infinite values, a quantizer without parameters, or too little memory.
    """
    require_room(model, calibration)
    found: dict[str, SiteFigures] = {}

    def measure(site: Site, x: Tensor) -> None:
        if rule is not None and needs_calibration(site):
            rule(site, x)
        found[site.name] = _figures(site, x, site.quantizer.fake_quantize)

    sites = list(model.sites())
    for site in sites:
        if site.is_weight:
            found[site.name] = _weight_figures(site, rule)
    activations = [site for site in sites if not site.is_weight]
    visit_sites(activations, lambda: model(calibration.whole()), measure, progress=progress)
    return [found[site.name] for site in sites]


def _weight_figures(site: Site, rule: RangeRule | None) -> SiteFigures:
    """Of a weight; a frozen one holds its levels, and what it was before may have been kept."""
    layer = site.operation
    assert isinstance(layer, WeightedOperation)
    weight = layer.weight.detach()
    if not layer.frozen:
        check_finite(weight, site.name)
        if rule is not None and needs_calibration(site):
            rule(site, weight)
        return _figures(site, weight, site.quantizer.fake_quantize)
    if layer.unrounded is None:
        return _figures(site, weight, None)
    return _figures(site, layer.unrounded, lambda _: weight)


def _figures(site: Site, x: Tensor, quantize: Callable[[Tensor], Tensor] | None) -> SiteFigures:
    """The figures of tensor ``x``; ``quantize`` maps it to its levels, None: that is not known."""
    quantizer = site.quantizer
    if not quantizer.initialised:
        raise MethodError(
            f"{site.name}: inspected before it was calibrated; calibrate the model first"
        )
    channels = channels_of(site, x)
    quantize = None if quantizer.spec.is_float else quantize
    return SiteFigures(
        site=site.name,
        key=site.key,
        bits=quantizer.spec.bits,
        mismatch=channel_mismatch(channels),
        precision=average_precision(channels),
        sqnr=None if quantize is None else sqnr(x, quantize(x)),
        clipped=None if quantize is None else clipped_share(x, quantizer),
        asymmetry=asymmetry(x),
    )
