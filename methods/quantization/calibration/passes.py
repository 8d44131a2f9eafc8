"""Calibration data, and passes over it that show every quantizer its input."""

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.memory import require_room
from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site

RangeRule = Callable[[Site, Tensor], None]
"""Sets the parameters of one site's quantizer, given the tensor that arrives there."""


@torch.no_grad()
def calibrate_activations(
    model: QuantizedModel,
    calibration: Calibration,
    rule: RangeRule,
    sequential: bool = False,
    progress: CalibrationProgress | None = None,
) -> None:
    """Apply ``rule`` to every activation site in one forward pass over the calibration images.

    Args:
        model: the wrapped model; quantizers that are active stay so.
        calibration: the images.
        rule: called once per site with the whole calibration set's tensor.
        sequential: switch each quantizer on as soon as it is calibrated, so that later sites see
            quantized inputs (RepQ-ViT); otherwise later sites see what the model gives now.
        progress: called after each site.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    require_room(model, calibration)
    calibrate_sites(
        list(model.sites()), lambda: model(calibration.whole()), rule, sequential, progress
    )


@torch.no_grad()
def calibrate_sites(
    sites: Sequence[Site],
    run: Callable[[], Any],
    rule: RangeRule,
    sequential: bool,
    progress: CalibrationProgress | None = None,
) -> None:
    """Apply ``rule`` to those of ``sites`` that are activations with parameters, while ``run`` runs.

    Arguments and errors as in `calibrate_activations`.
    """
    sites = [site for site in sites if not site.is_weight and needs_calibration(site)]
    if not sites:
        return
    visit_sites(sites, run, rule, sequential, progress)


@torch.no_grad()
def visit_sites(
    sites: Sequence[Site],
    run: Callable[[], Any],
    rule: RangeRule,
    sequential: bool = False,
    progress: CalibrationProgress | None = None,
) -> None:
    """Show ``rule`` what arrives at each of ``sites`` while ``run`` runs, whatever it makes of it.

    Arguments and errors as in `calibrate_activations`; all sites are activations. Where a layer sees several
    feature maps the rule is called once for each, with all that came so far.
    """
    seen: set[str] = set()
    with ExitStack() as stack:
        for site in sites:
            watch(
                stack, site.quantizer, _Visitor(site, rule, sequential, seen, progress, len(sites))
            )
        run()
    require_reached((site.name for site in sites), seen)


def needs_calibration(site: Site) -> bool:
    """Whether a site has parameters that calibration must set."""
    return not site.quantizer.spec.is_float and not site.quantizer.spec.dynamic


class _Visitor:
    """Forward pre-hook of one quantizer."""

    def __init__(
        self,
        site: Site,
        rule: RangeRule,
        sequential: bool,
        seen: set[str],
        progress: CalibrationProgress | None,
        total: int,
    ) -> None:
        self.site, self.rule, self.sequential = site, rule, sequential
        self.seen, self.progress, self.total = seen, progress, total
        self._parts: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        check_finite(inputs[0], self.site.name)
        self.rule(self.site, self._joined(inputs[0]))
        self.seen.add(self.site.name)
        self.site.quantizer.active |= self.sequential
        if self.progress is not None:
            self.progress(len(self.seen), self.total)

    def _joined(self, x: Tensor) -> Tensor:
        """What arrived so far: the maps of all levels [B, C, H, W] in a row, where a layer sees several."""
        if not self.site.operation.several_maps:
            return x
        self._parts.append(x.detach().flatten(2).unsqueeze(-1))
        return torch.cat(self._parts, dim=2)


def require_reached(names: Iterable[str], reached: Container[str]) -> None:
    """Raise `MethodError` unless a pass has reached all of ``names``, of sites or operations."""
    missing = [name for name in names if name not in reached]
    if missing:
        raise MethodError(
            f"the forward pass never reached {missing[:5]}; the model is not supported"
        )


def check_finite(x: Tensor, site: str) -> None:
    """Raise `MethodError` naming the site if ``x`` has NaN or infinite values."""
    low, high = torch.aminmax(x)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise MethodError(
            f"{site}: NaN or infinite values during calibration; check the checkpoint and the images"
        )


@torch.no_grad()
def calibrate_weights(
    model: QuantizedModel, rule: RangeRule, of: Container[QuantOperation] | None = None
) -> None:
    """Apply ``rule`` to every weight site, or to those of some operations.

    Raises:
        MethodError: NaN or infinite weights; the site is named.
    """
    for site in model.sites():
        asked = of is None or site.operation in of
        if site.is_weight and asked and needs_calibration(site):
            weight = site.operation.operands((torch.empty(0),))[1]
            check_finite(weight, site.name)
            rule(site, weight)
