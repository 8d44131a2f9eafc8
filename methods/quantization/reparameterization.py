"""RepQ-ViT's scale reparameterization: a calibration whose scales move into the weights behind LayerNorms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import (
    RangeRule,
    calibrate_activations,
    calibrate_sites,
    calibrate_weights,
    check_finite,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import best_percentile_rule
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import NormLink
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

PERCENTILES = (0.999, 0.9999, 0.99999)
"""Of which RepQ-ViT takes the one of least squared error."""


def calibrate_reparameterized(
    model: QuantizedModel,
    calibration: Calibration,
    *,
    zero_point: Literal["integer", "fractional"] = "integer",
    scale: Literal["mean", "median"] = "mean",
    quantized_weights: bool = True,
    rule: RangeRule | None = None,
    weight_rule: RangeRule | None = None,
    progress: CalibrationProgress | None = None,
) -> None:
    """Calibrate everything, LayerNorm outputs per channel at first, then fold their scales away.

    Source: RepQ-ViT (Li et al., ICCV 2023), section 3.2. One forward pass in which each quantizer sees
    quantized predecessors and takes the best of `PERCENTILES`. Behind it the channels' scales ``s`` and zero
    points ``z`` of a LayerNorm output become one scale and one zero point per tensor: the ratios go into
    LayerNorm and reader (`fold_into_reader`). Weights are calibrated before, and again where scales went into
    them. LayerNorm outputs in floating point, dynamic or of another form than uniform are left as they are.

    Args:
        model: the wrapped model; its weights are changed where scales are folded.
        calibration: the images, shown as one batch.
        zero_point: round the averaged zero point (codes are integers) or keep the ``fractional`` mean.
        scale: the tensor's scale is the mean or the median of the channels'.
        quantized_weights: activations are calibrated behind quantized weights (RepQ-ViT), or behind those
            in floating point (ERQ's released code).
        rule: of all ranges; None: the best of `PERCENTILES`.
        weight_rule: of the weights in the end; None: ``rule``, which activations are calibrated behind.
        progress: called after each activation site.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    rule = rule or best_percentile_rule(PERCENTILES)
    links = split_channels(model)
    calibrate_weights(model, rule)
    model.activate(weights=quantized_weights, activations=False)
    calibrate_activations(model, calibration, rule, sequential=True, progress=progress)
    join_channels(links, zero_point, scale)
    if weight_rule is None:
        calibrate_weights(model, rule, of={link.reader for link in links})
    else:
        calibrate_weights(model, weight_rule)


def split_channels(model: QuantizedModel) -> list[NormLink]:
    """Give every LayerNorm output that can be folded a quantizer per channel; return their links."""
    links = [link for link in model.structure.norm_links if _foldable(link)]
    for link in links:
        _use_channels(link)
    return links


def join_channels(
    links: Iterable[NormLink],
    zero_point: Literal["integer", "fractional"] = "integer",
    scale: Literal["mean", "median"] = "mean",
) -> None:
    """Fold the scales per channel into LayerNorm and reader; arguments as in `calibrate_reparameterized`.

    Weights in floating point make up for it exactly; those of the readers have to be calibrated anew.
    """
    for link in links:
        _reparameterize(link, zero_point, scale)


def fold_norm_outputs(model: QuantizedModel, calibration: Calibration, rule: RangeRule) -> None:
    """Fold the channels' scales and zero points of LayerNorm outputs away, and calibrate nothing else.

    As in `calibrate_reparameterized`, with whole zero points and the mean scale, but in full precision and
    from any rule. The readers' input quantizers are calibrated then, one scale per tensor; the
    full-precision function stays the same.

    Args:
        model: the wrapped model, its quantizers inactive; LayerNorms and their readers are changed.
        calibration: the images, shown as one batch.
        rule: sets a uniform quantizer with a scale per channel.

    Raises:
        MethodError: NaN or infinite activations or weights; the site is named.
    """
    links = split_channels(model)
    for link in links:
        check_finite(link.reader.weight, f"{link.reader.name}.weight")
    patch_embed = model.weighted_operations()[0]
    check_finite(calibration.whole(), f"{patch_embed.name}.input")
    readers = {link.reader for link in links}
    sites = [site for site in model.sites() if site.operation in readers]
    calibrate_sites(sites, lambda: model(calibration.whole()), rule, sequential=False)
    join_channels(links)


def _foldable(link: NormLink) -> bool:
    """Folding needs a static uniform quantizer between LayerNorm and linear layer."""
    spec = link.reader.input_quantizer.spec
    return not spec.is_float and not spec.dynamic and spec.scheme == "uniform"


def _use_channels(link: NormLink) -> None:
    quantizer = link.reader.input_quantizer
    spec = replace(quantizer.spec, granularity="channel", symmetric=False)
    link.reader.input_quantizer = UniformQuantizer(spec, quantizer.site, axis=-1)


def _reparameterize(link: NormLink, zero_point: str, scale: str) -> None:
    """Replace the quantizer per channel by one per tensor; fold the ratios into norm and reader."""
    channels = link.reader.input_quantizer
    assert isinstance(channels, UniformQuantizer)
    scales, zero_points = channels.scale, channels.zero_point.float()
    common = scales.mean() if scale == "mean" else scales.median()
    zero = zero_points.mean()
    if zero_point == "integer":
        zero = zero.round()
    fold_into_reader(link, scales / common, scales * (zero_points - zero))
    quantizer = UniformQuantizer(replace(channels.spec, granularity="tensor"), channels.site)
    quantizer.set_parameters(common, zero)
    link.reader.input_quantizer = quantizer
