"""MLP reconstruction: ReLU in the place of GELU, and the layers around it fitted to the old outputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.activations import (
    batches,
    input_of,
    send_through,
    take,
)
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.error_compensation.solving import ridge_solution
from vit_ptq_bench.methods.quantization.model.activation import ActivatedMlp, mlps_of
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

CLIPPED_WEIGHT = 2.0
"""Of the error with the clipped input of fc2, beside 1 of the plain one (GLF-Q, APHQ-ViT)."""


@dataclass(frozen=True)
class ReluFit:
    """How MLPs are fitted.

    Attributes:
        iterations: Adam steps on weights and biases of fc1 and fc2; 0: fc2 by ridge regression alone.
        batch_size: images per step.
        rate: Adam's learning rate, which falls to 0 as half a cosine.
        ridge: what it costs fc2 to leave its weights, as a share of the mean square of its inputs.
        percentile: of the positive old inputs of fc2, where the clipped one is clipped.
    """

    iterations: int = 0
    batch_size: int = 32
    rate: float = 4e-5
    ridge: float = 1e-2
    percentile: float = 0.99


def refit_relu(model: QuantizedModel, calibration: Calibration, fit: ReluFit) -> None:
    """Put ReLU in the place of every GELU whose output is quantized, and fit the MLP to its old output.

    Source: APHQ-ViT and GLF-Q (MLP reconstruction). The operation changes, so the model is no longer the
    original in full precision: what needs that takes a copy before. On the full-precision inputs x and
    outputs y of each MLP: ``|f(x) - y|^2 + 2 |f_clip(x) - y|^2``, f with ReLU, f_clip with the input of fc2
    clipped. First fc2 and its bias in closed form, towards their old values; then gradient steps, if asked
    for.

    Args:
        model: the wrapped model, quantizers inactive, not frozen.
        calibration: the images; its seed decides the batches.
        fit: how.

    Raises:
        MethodError: no MLP with a GELU was found, or the images have NaN or infinite values.
    """
    mlps = mlps_of(model)
    if not mlps:
        raise MethodError(
            "the model has no MLP with a GELU between its two layers that ReLU could replace; leave the "
            "MLP reconstruction out (relu = false)"
        )
    generator = torch.Generator().manual_seed(calibration.seed)
    by_layer = {id(mlp.fc1): mlp for mlp in mlps if not mlp.fc2.input_quantizer.spec.is_float}
    stream = calibration.whole()
    check_finite(stream, f"{model.weighted_operations()[0].name}.input")
    for segment in model.structure.segments:
        found = [by_layer[id(op)] for op in segment.operations if id(op) in by_layer]
        exact = send_through(segment.run, stream, model.device)
        for mlp in found:
            inputs = input_of(mlp.fc1, segment, stream, model.device)
            _Fitting(mlp, inputs, fit, generator, model.device).run()
        stream = exact


class _Fitting:
    """The fit of one MLP."""

    def __init__(
        self,
        mlp: ActivatedMlp,
        inputs: Tensor,
        fit: ReluFit,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._mlp, self._inputs, self._fit = mlp, inputs, fit
        self._generator, self._device = generator, device
        for layer in (mlp.fc1, mlp.fc2):
            layer.ensure_bias()
        self._old = [layer.weight.detach().clone() for layer in (mlp.fc1, mlp.fc2)]
        self._old_bias = [layer.ensure_bias().detach().clone() for layer in (mlp.fc1, mlp.fc2)]
        self._activation: Callable[[Tensor], Tensor] = mlp.activation
        first = self._old_hidden(self._rows(0))
        positive = first[first > 0]
        self._top = float(_quantile(positive, fit.percentile)) if positive.numel() else math.inf

    def run(self) -> None:
        """Replace the activation and fit what is around it."""
        self._mlp.use_relu()
        self._regress()
        if self._fit.iterations:
            self._train()

    def _rows(self, part: int) -> Tensor:
        rows = self._inputs[batches(self._inputs)[part]].to(self._device)
        return rows.reshape(-1, rows.shape[-1])

    def _old_hidden(self, x: Tensor) -> Tensor:
        return self._activation(F.linear(x, self._old[0], self._old_bias[0]))

    def _target(self, x: Tensor) -> Tensor:
        return F.linear(self._old_hidden(x), self._old[1], self._old_bias[1])

    @torch.no_grad()
    def _regress(self) -> None:
        """fc2 and its bias: ridge regression of what is missing of the old output."""
        fc1, fc2 = self._mlp.fc1, self._mlp.fc2
        size = fc2.weight.shape[1] + 1
        moment = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        missing = torch.zeros(fc2.weight.shape[0], size, dtype=torch.float64, device=self._device)
        weight = torch.cat([fc2.weight, fc2.ensure_bias()[:, None]], dim=1)
        for part in range(len(batches(self._inputs))):
            x = self._rows(part)
            hidden = F.linear(x, fc1.weight, fc1.bias).relu_()
            target = self._target(x)
            for share, seen in ((1.0, hidden), (CLIPPED_WEIGHT, hidden.clamp_max(self._top))):
                rows = F.pad(seen, (0, 1), value=1.0)
                moment += share * (rows.T @ rows).double()
                missing += share * ((target - rows @ weight.T).T @ rows).double()
        change = ridge_solution(moment, missing.T, self._fit.ridge).to(weight.dtype)
        fc2.weight.data.add_(change[:, :-1])
        fc2.ensure_bias().data.add_(change[:, -1])

    def _train(self) -> None:
        """Gradient steps on all weights and biases."""
        layers = (self._mlp.fc1, self._mlp.fc2)
        own: list[nn.Parameter] = [p for op in layers for p in (op.weight, op.ensure_bias())]
        trained = [p.detach().clone().requires_grad_() for p in own]
        optimizer = torch.optim.Adam(trained, lr=self._fit.rate)
        for iteration in range(self._fit.iterations):
            share = iteration / self._fit.iterations
            optimizer.param_groups[0]["lr"] = self._fit.rate * 0.5 * (1 + math.cos(math.pi * share))
            order = torch.randperm(len(self._inputs), generator=self._generator)
            x = take(self._inputs, order[: self._fit.batch_size], self._device)
            with torch.enable_grad():
                loss = self._loss(x, *trained)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        for parameter, value in zip(own, trained, strict=True):
            parameter.data.copy_(value.detach())

    def _loss(
        self, x: Tensor, first: Tensor, bias: Tensor, second: Tensor, shift: Tensor
    ) -> Tensor:
        hidden = F.linear(x, first, bias).relu()
        target = self._target(x).detach()
        plain = F.linear(hidden, second, shift) - target
        clipped = F.linear(hidden.clamp_max(self._top), second, shift) - target
        return plain.square().mean() + CLIPPED_WEIGHT * clipped.square().mean()


def _quantile(values: Tensor, share: float) -> Tensor:
    return values.kthvalue(max(1, math.ceil(share * values.numel()))).values
