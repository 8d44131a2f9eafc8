"""Scales of powers of two: exponents per channel that fold away, and one exponent by the output's error."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    RangeRule,
    calibrate_activations,
    check_finite,
    needs_calibration,
)
from vit_ptq_bench.methods.quantization.calibration.recording import Recording, record_operations
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import NormLink, Site, sites_of
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.rounded_scales import PowerOfTwoQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.search.candidates import best_index
from vit_ptq_bench.methods.quantization.search.scores import (
    DirectScore,
    Operand,
    SquaredErrorMetric,
    by_row,
)

LIMIT = 3
"""Exponents of channels lie between minus and plus this."""

Grids = dict[str, tuple[Tensor, Tensor]]
"""Site -> scale and zero point before they are rounded, both [groups]."""


def channel_exponents(x: Tensor) -> Tensor:
    """Return ``e_c = round(log2(r_c / median r))``, r_c the largest magnitude of a channel, within `LIMIT`.

    Args:
        x: [..., C].

    Returns:
        Whole float numbers, [C]; zeros where more than half of the channels are zero throughout.
    """
    largest = x.abs().flatten(0, -2).amax(dim=0)
    median = largest.median()
    if float(median) == 0:
        return torch.zeros_like(largest)
    return torch.log2(largest / median).round_().clamp_(-LIMIT, LIMIT)


@torch.no_grad()
def calibrate_powers_of_two(
    model: QuantizedModel,
    calibration: Calibration,
    rule: RangeRule,
    rounds: int = 2,
    progress: CalibrationProgress | None = None,
) -> None:
    """Calibrate a model whose uniform quantizers have scales of powers of two.

    One pass fits the scale of every activation by ``rule``. A LayerNorm output with one scale is divided by
    two to the `channel_exponents` first, which fold into LayerNorm and reader: the full-precision function
    stays the same to the bit. A LayerNorm's input with a scale per channel has the same exponents in its
    scales. A second pass chooses between the powers of two below and above each fitted scale by the squared
    error of the operation's output, both operands quantized: weights before inputs, the first operand of an
    attention product before the second, again while something changes. Uniform quantizers of another form
    keep the fitted scales.

    Args:
        model: the wrapped model, its quantizers inactive.
        calibration: the images.
        rule: of weights and activations in full precision.
        rounds: alternations at most.
        progress: called after each operation of the second pass.

    Raises:
        MethodError: NaN or infinite weights or activations; the site is named.
    """
    for layer in model.weighted_operations():
        check_finite(layer.weight, f"{layer.name}.weight")
    links = {link.reader.name: link for link in model.structure.norm_links if _foldable(link)}
    exponents: dict[str, Tensor] = {}
    grids: Grids = {}

    def fit(site: Site, x: Tensor) -> None:
        if site.operation.name in links:
            exponents[site.operation.name] = channel_exponents(x)
            x = x / torch.exp2(exponents[site.operation.name])
        grids.update(fitted(site, x, rule))

    calibrate_activations(model, calibration, fit)
    for name, link in links.items():
        fold_into_reader(link, torch.exp2(exponents[name]), torch.zeros_like(exponents[name]))
    for site in model.sites():
        if site.is_weight and needs_calibration(site):
            grids.update(fitted(site, site.operation.operands((torch.empty(0),))[1], rule))
    _choose_all(model, calibration, grids, rounds, progress)


def _foldable(link: NormLink) -> bool:
    """Folding needs a static uniform quantizer of one scale between LayerNorm and linear layer."""
    quantizer = link.reader.input_quantizer
    static = not quantizer.spec.is_float and not quantizer.spec.dynamic
    return static and isinstance(quantizer, UniformQuantizer) and quantizer.axis is None


def fitted(site: Site, x: Tensor, rule: RangeRule) -> Grids:
    """Give the site's quantizer the grid that ``rule`` finds for ``x``, and return it before it is rounded.

    Returns:
        Nothing for forms other than uniform, which ``rule`` sets as it does.
    """
    quantizer = site.quantizer
    if not isinstance(quantizer, UniformQuantizer):
        rule(site, x)
        return {}
    plain, axis = replace(quantizer.spec, scheme="uniform"), quantizer.axis
    factors = x.new_ones(1)
    if site.key == "norm.input" and axis is not None:
        plain, axis = replace(plain, granularity="tensor"), None
        factors = torch.exp2(channel_exponents(x))
    probe = UniformQuantizer(plain, quantizer.site, axis)
    rule(replace(site, quantizer=probe), x / factors)
    scale = probe.scale * factors
    zero_point = probe.zero_point.expand_as(scale)
    quantizer.set_parameters(scale, zero_point)
    return {site.name: (scale, zero_point)}


def _choose_all(
    model: QuantizedModel,
    calibration: Calibration,
    grids: Grids,
    rounds: int,
    progress: CalibrationProgress | None,
) -> None:
    operations = [op for op in model.operations if _has_choices(op, grids)]
    if not operations:
        return
    recordings = record_operations(model, calibration, operations=operations)
    for done, (operation, recording) in enumerate(recordings, start=1):
        choose_exponents(operation, recording, grids, rounds)
        if progress is not None:
            progress(done, len(operations))


def _has_choices(operation: QuantOperation, grids: Grids) -> bool:
    return operation.role != "norm" and any(
        isinstance(site.quantizer, PowerOfTwoQuantizer) and site.name in grids
        for site in sites_of([operation])
    )


def choose_exponents(
    operation: QuantOperation,
    recording: Recording,
    grids: Mapping[str, tuple[Tensor, Tensor]],
    rounds: int,
) -> None:
    """Choose each operand's power of two, below or above its fitted scale, by the error of the output.

    A weight chooses for each of its scales alone. An input of several scales, none of which has an output
    of its own, keeps the nearest.

    Args:
        operation: its quantizers are set.
        recording: its inputs and output in full precision.
        grids: by site, what is chosen around; operands without stay as they are.
        rounds: alternations at most; they end when nothing changes.
    """
    recording = by_row(operation, recording)
    tensors, quantizers = (
        operation.operands(recording.inputs),
        list(operation.quantizers().values()),
    )
    product = isinstance(operation, QuantMatMul)
    chosen: dict[int, Tensor] = {}
    for _ in range(rounds):
        before = dict(chosen)
        for which in (0, 1) if product else (1, 0):
            quantizer = quantizers[which]
            if not isinstance(quantizer, PowerOfTwoQuantizer) or quantizer.site not in grids:
                continue
            apply = _between(quantizer, *grids[quantizer.site])
            groups = quantizer.scale.numel()
            if groups > 1 and which == 0 and not product:
                continue
            fixed = _quantized(quantizers[1 - which], tensors[1 - which])
            score = DirectScore(
                SquaredErrorMetric(),
                Operand(operation, recording, apply, quantizer, which, fixed, groups),
            )
            chosen[which] = best_index(score, 2, groups, "exhaustive", fixed.device)
            apply(chosen[which])
        if before and all(torch.equal(before[which], chosen[which]) for which in chosen):
            return


def _between(
    quantizer: PowerOfTwoQuantizer, scale: Tensor, zero_point: Tensor
) -> Callable[[Tensor], None]:
    """Return a function of 0 and 1 per group that sets the power of two below ``scale`` or above it."""
    below = quantizer.below(scale)

    def apply(index: Tensor) -> None:
        allowed = below * (1 + index)
        quantizer.set_parameters(allowed, quantizer.moved(zero_point, scale / allowed))

    return apply


def _quantized(quantizer: Quantizer, x: Tensor) -> Tensor:
    return x if quantizer.spec.is_float else quantizer.fake_quantize(x)
