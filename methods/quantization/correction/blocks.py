"""Corrections of blocks one after the other: beside the block (QwT), or folded into its last layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.activations import batches, send_through
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, check_finite
from vit_ptq_bench.methods.quantization.correction.layers import require_halves
from vit_ptq_bench.methods.quantization.correction.regression import Linear, Regression
from vit_ptq_bench.methods.quantization.model.correction import attach_correction
from vit_ptq_bench.methods.quantization.model.layers import QuantLinear, QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Segment, Site

LAST_ROLES = ("proj", "fc2")
"""The layers that write to the residual stream: the last of a block's attention and of its MLP."""


TokenWeights = Literal["relative", "plain"]
"""Whether a token's squared error counts relative to the token's own square. What reads the residual stream
are LayerNorms, which take a token's size away; and a few tokens of a ViT may be 30 times as large as all
others, so that plain squared errors are theirs alone."""


@dataclass
class _Streams:
    """Activations of all calibration images in front of the current segment.

    Attributes:
        exact: in full precision.
        quantized: from the quantized prefix.
    """

    model: QuantizedModel
    exact: Tensor
    quantized: Tensor

    def exact_output(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the full-precision output of a piece of the model whose weights are still the model's."""
        self.model.activate(weights=False, activations=False)
        return send_through(run, self.exact, self.model.device)

    def quantized_output(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return its quantized output."""
        self.model.activate()
        return send_through(run, self.quantized, self.model.device)


def _start(model: QuantizedModel, calibration: Calibration) -> _Streams:
    require_halves(calibration.n_images)
    model.requires_grad_(False)
    images = calibration.whole()
    check_finite(images, f"{model.operations[0].name}.input")
    return _Streams(model, images, images)


@torch.no_grad()
def correct_blocks(
    model: QuantizedModel,
    calibration: Calibration,
    ridge: float,
    weights: TokenWeights = "relative",
    progress: CalibrationProgress | None = None,
) -> int:
    """Add ``W x + b`` to the output of each block where that removes some of its error (QwT).

    Block after block, each on what the quantized and corrected blocks before it give: the error of its
    output against the full-precision model's is regressed on its input.

    Args:
        model: calibrated, its weights not yet codes; all quantizers are active afterwards.
        calibration: the images, two at least.
        ridge: see `regression.Regression`.
        weights: what a token's error counts.
        progress: called after each segment.

    Returns:
        How many blocks have got a correction.

    Raises:
        MethodError: too few images, activations that are not finite, or too small a ridge.
    """
    streams = _start(model, calibration)
    segments = model.structure.segments
    corrected = 0
    for done, segment in enumerate(segments, start=1):
        exact = streams.exact_output(segment.run)
        quantized = streams.quantized_output(segment.run)
        if segment.kind == "block":
            found = _regression(streams, exact, quantized, weights).solve(ridge)
            corrected += found is not None
            if found is not None:
                _attach(model, segment, found, streams.quantized, quantized)
        streams = _Streams(model, exact, quantized)
        if progress is not None:
            progress(done, len(segments), segment.name)
    return corrected


def _weights_of(tokens: Tensor, weights: TokenWeights) -> Tensor:
    """What the squared error of each token [..., C] counts, [..., 1]."""
    if weights == "plain":
        return tokens.new_ones(*tokens.shape[:-1], 1)
    return 1 / tokens.square().mean(-1, keepdim=True).clamp_min(torch.finfo(tokens.dtype).tiny)


def _regression(
    streams: _Streams, exact: Tensor, quantized: Tensor, weights: TokenWeights
) -> Regression:
    """Of a block's error on its quantized input."""
    device = streams.model.device
    found = Regression(streams.quantized.shape[-1], exact.shape[-1], device)
    for part in batches(exact):
        x, wanted, output = (t[part].to(device) for t in (streams.quantized, exact, quantized))
        counts = _weights_of(wanted, weights).flatten(1)
        found.add(x.flatten(1, -2), (wanted - output).flatten(1, -2), counts)
    return found


def _attach(
    model: QuantizedModel, segment: Segment, found: Linear, inputs: Tensor, outputs: Tensor
) -> None:
    """Give the block its correction, and add it to the outputs that were computed without."""
    correction = attach_correction(model, segment)
    correction.set(found.weight, found.bias)
    for part in batches(outputs):
        outputs[part] += correction(inputs[part].to(model.device)).to(outputs.device)


@torch.no_grad()
def fold_corrections(
    model: QuantizedModel,
    calibration: Calibration,
    ridge: float,
    weights: TokenWeights = "relative",
    rule: RangeRule | None = None,
    progress: CalibrationProgress | None = None,
) -> int:
    """Let the last layer of each attention and MLP take up the error of the residual stream behind it.

    Half block after half block: with the layer's weight not yet quantized, what the stream behind it lacks
    to the full-precision one is regressed on the layer's own quantized input; ``W + dW`` and ``b + db`` are
    then quantized instead. The model gets no further operation.

    Args:
        model, calibration, ridge, weights, progress: as in `correct_blocks`.
        rule: sets the range of a changed weight; None: it keeps the range that it has.

    Returns:
        How many layers have been changed.

    Raises:
        MethodError: as `correct_blocks`.
    """
    streams = _start(model, calibration)
    segments = model.structure.segments
    changed = 0
    for done, segment in enumerate(segments, start=1):
        for part in segment.halves or (segment,):
            exact = streams.exact_output(part.run)
            model.activate()
            for layer in part.operations:
                if _is_last(layer, model):
                    regression = _regression_behind(streams, part, layer, exact, weights)
                    found = regression.solve(ridge)
                    changed += found is not None
                    if found is not None:
                        _fold(layer, found, rule)
            streams = _Streams(model, exact, streams.quantized_output(part.run))
        if progress is not None:
            progress(done, len(segments), segment.name)
    return changed


def _is_last(layer: QuantOperation, model: QuantizedModel) -> TypeGuard[QuantLinear]:
    """Whether a layer writes to the residual stream, with no norm between."""
    last = isinstance(layer, QuantLinear) and layer.role in LAST_ROLES
    return last and model.structure.writes(layer)


def _regression_behind(
    streams: _Streams, part: Segment, layer: QuantLinear, exact: Tensor, weights: TokenWeights
) -> Regression:
    """Of what the output of ``part`` lacks on the input of ``layer``, all but whose weight is quantized."""
    device = streams.model.device
    rows, columns = layer.weight.shape
    found = Regression(columns, rows, device)
    layer.weight_quantizer.active = False
    for some in batches(exact):
        x, target = (t[some].to(device) for t in (streams.quantized, exact))
        found.add(*_rows_of(part, layer, x, target, weights))
    layer.weight_quantizer.active = True
    return found


def _fold(layer: QuantLinear, found: Linear, rule: RangeRule | None) -> None:
    layer.weight.add_(found.weight.to(layer.weight))
    layer.ensure_bias().add_(found.bias.to(layer.weight))
    quantizer = layer.weight_quantizer
    if rule is not None and not quantizer.spec.is_float:
        rule(Site(quantizer.site, f"{layer.role}.weight", quantizer, layer), layer.weight)


def _rows_of(
    part: Segment, layer: QuantLinear, x: Tensor, target: Tensor, weights: TokenWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's inputs [b, rows, K], what its outputs lack [b, rows, R], and what each row counts.

    Behind the layer there are only moves of tokens (Swin's windows), the loss of padded ones, a factor per
    channel at most and the residual: a linear map of the layer's output. Its transpose, by automatic
    differentiation, brings error and weights back to the layer's rows, times the factors, and ones to the
    factors.
    """
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        seen.extend([layer.input_quantizer(inputs[0]), output.detach().requires_grad_()])
        return seen[1]

    handle = layer.register_forward_hook(watch)
    try:
        with torch.no_grad():
            result = part.run(x)
    finally:
        handle.remove()
    inputs, output = seen
    ones = torch.ones_like(target)
    factors, error, counts = (
        torch.autograd.grad(result, output, along, retain_graph=True)[0]
        for along in (ones, target - result.detach(), ones * _weights_of(target, weights))
    )
    kept = factors != 0
    lack = torch.where(kept, error / factors.square(), 0.0)
    count = torch.where(kept, counts / factors, 0.0).amax(-1)
    shape = len(x), -1
    return (
        torch.unflatten(inputs, 0, shape).flatten(1, -2),
        torch.unflatten(lack, 0, shape).flatten(1, -2),
        torch.unflatten(count, 0, shape).flatten(1),
    )
