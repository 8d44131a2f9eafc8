"""MLP reconstruction: ReLU in the place of GELU, and the layers around it fitted to the old outputs."""

import math
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
from vit_ptq_bench.methods.quantization.transforms.base import Transform

CLIPPED_WEIGHT = 2.0
"""Of the error with the clipped input of fc2, beside 1 of the plain one (GLF-Q, APHQ-ViT)."""

NO_GELU = "the model has no MLP with a GELU between its two layers that ReLU could replace"


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
    ridge: float = 0.1
    percentile: float = 0.99


def refit_relu(model: QuantizedModel, calibration: Calibration, fit: ReluFit) -> None:
    """Put ReLU in the place of every GELU whose output is quantized, and fit the MLP to what is wanted of it.

    Source: APHQ-ViT and GLF-Q (MLP reconstruction). The operation changes, so the model is no longer the
    original in full precision: what needs that takes a copy before. On the inputs x of each MLP and what it
    should give, y: ``w (|f(x) - y|^2 + 2 |f_clip(x) - y|^2)``, f with ReLU, f_clip with the input of fc2
    clipped. First fc2 and its bias in closed form, towards their old values; then gradient steps, if asked
    for.

    Where the papers fit each MLP alone to its old output, x is what the MLPs before, already fitted, leave, y
    the original stream behind the MLP minus what the new one carries, and w one over the token's squared
    norm there: else errors add up from block to block, and a few tokens of large norm own the fit
    (docs/reconstruction.md).

    Args:
        model: the wrapped model, quantizers inactive, not frozen.
        calibration: the images; its seed decides the batches.
        fit: how.

    Raises:
        MethodError: no MLP with a GELU was found, or the images have NaN or infinite values.
    """
    if (problem := relu_problem(model)) is not None:
        raise MethodError(problem)
    generator = torch.Generator().manual_seed(calibration.seed)
    by_layer = {id(mlp.fc1): mlp for mlp in _replaceable(model)}
    exact = new = calibration.whole()
    check_finite(exact, f"{model.weighted_operations()[0].name}.input")
    segments = model.structure.segments
    for part in [part for segment in segments for part in (segment.halves or (segment,))]:
        behind = send_through(part.run, exact, model.device)
        for mlp in [by_layer[id(op)] for op in part.operations if id(op) in by_layer]:
            inputs = input_of(mlp.fc1, part, new, model.device).flatten(1, -2)
            asked = model.structure.asked_of(mlp.fc2, behind - new)
            output, weight = part.arrange(asked), part.arrange(1 / _power(behind))
            wanted = _Wanted(output.flatten(1, -2), weight.flatten(1, -2))
            _Fitting(mlp, inputs, wanted, fit, generator, model.device).run()
        exact, new = behind, send_through(part.run, new, model.device)


def relu_problem(model: QuantizedModel) -> str | None:
    """Return why `refit_relu` cannot be carried out on a model, and what to do; None: it can."""
    if mlps_of(model):
        return None
    return f"{NO_GELU}; leave the MLP reconstruction out (relu = false)"


def _replaceable(model: QuantizedModel) -> list[ActivatedMlp]:
    return [mlp for mlp in mlps_of(model) if not mlp.fc2.input_quantizer.spec.is_float]


@dataclass(frozen=True)
class _Wanted:
    """What an MLP should give: output [n, t, O] for t tokens of n images, and their weights [n, t, 1]."""

    output: Tensor
    weight: Tensor


def _power(stream: Tensor) -> Tensor:
    return stream.square().sum(dim=-1, keepdim=True).clamp_min(1e-12)


class _Fitting:
    """The fit of one MLP."""

    def __init__(
        self,
        mlp: ActivatedMlp,
        inputs: Tensor,
        wanted: _Wanted,
        fit: ReluFit,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._mlp, self._inputs, self._fit = mlp, inputs, fit
        self._wanted, self._generator, self._device = wanted, generator, device
        for layer in (mlp.fc1, mlp.fc2):
            layer.ensure_bias()
        first = mlp.activation(F.linear(self._rows(0)[0], mlp.fc1.weight, mlp.fc1.bias))
        positive = first[first > 0]
        self._top = float(_quantile(positive, fit.percentile)) if positive.numel() else math.inf

    def run(self) -> None:
        """Replace the activation and fit what is around it."""
        self._mlp.use_relu()
        self._regress()
        if self._fit.iterations:
            self._train()

    def _rows(self, part: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs [t, K], wanted outputs [t, O] and weights [t, 1] of some images' tokens."""
        chosen = batches(self._inputs)[part]
        held = (self._inputs, self._wanted.output, self._wanted.weight)
        x, y, w = (each[chosen].to(self._device).flatten(0, 1) for each in held)
        return x, y, w

    @torch.no_grad()
    def _regress(self) -> None:
        """fc2 and its bias: ridge regression of what is missing of the old output."""
        fc1, fc2 = self._mlp.fc1, self._mlp.fc2
        size = fc2.weight.shape[1] + 1
        moment = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        missing = torch.zeros(fc2.weight.shape[0], size, dtype=torch.float64, device=self._device)
        weight = torch.cat([fc2.weight, fc2.ensure_bias()[:, None]], dim=1)
        for part in range(len(batches(self._inputs))):
            x, target, importance = self._rows(part)
            hidden = F.linear(x, fc1.weight, fc1.bias).relu_()
            for share, seen in ((1.0, hidden), (CLIPPED_WEIGHT, hidden.clamp_max(self._top))):
                rows = F.pad(seen, (0, 1), value=1.0)
                weighted = share * importance * rows
                moment += (weighted.T @ rows).double()
                missing += ((target - rows @ weight.T).T @ weighted).double()
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
            chosen = order[: self._fit.batch_size]
            held = (self._inputs, self._wanted.output, self._wanted.weight)
            batch = [take(each, chosen, self._device) for each in held]
            with torch.enable_grad():
                loss = self._loss(*batch, *trained)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        for parameter, value in zip(own, trained, strict=True):
            parameter.data.copy_(value.detach())

    def _loss(
        self,
        x: Tensor,
        target: Tensor,
        importance: Tensor,
        first: Tensor,
        bias: Tensor,
        second: Tensor,
        shift: Tensor,
    ) -> Tensor:
        hidden = F.linear(x, first, bias).relu()
        plain = F.linear(hidden, second, shift) - target
        clipped = F.linear(hidden.clamp_max(self._top), second, shift) - target
        errors = plain.square() + CLIPPED_WEIGHT * clipped.square()
        return (importance * errors).mean() / importance.mean()


def _quantile(values: Tensor, share: float) -> Tensor:
    return values.kthvalue(max(1, math.ceil(share * values.numel()))).values


def _closed_form(model: QuantizedModel, calibration: Calibration) -> None:
    refit_relu(model, calibration, ReluFit())


def _problem(model: QuantizedModel) -> str | None:
    if not mlps_of(model):
        return NO_GELU
    if not _replaceable(model):
        return "the input of fc2 is left in floating point, where GELU does no harm"
    return None


PROVIDED = {"refit-relu": Transform(_closed_form, _problem)}
"""The form without training, as the profiles ``fast`` of APHQ-ViT and GLF-Q have it."""
