"""Losses whose squared gradients weigh errors, and those gradients."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.model.structure import Output

OutputLoss = Callable[[Output, torch.Generator], Tensor]
"""Scalar loss of a batch's output; summed over images, so that g belongs to one image."""


def fisher_loss(output: Output, generator: torch.Generator) -> Tensor:
    """A loss whose squared gradient has the diagonal of the Fisher information as expectation.

    For logits: cross entropy to labels drawn from the model's own softmax, summed over the batch. For feature
    maps P: ``sum of <P, e> / |P|`` with e drawn from N(0, 1), the same for a Gaussian whose deviation is the
    map's size; the expectation is then the Gauss-Newton diagonal of the relative squared error.
    """
    if not isinstance(output, Tensor):
        return torch.stack([_projection(part, generator) for part in output]).sum()
    logits = output
    probabilities = logits.detach().softmax(dim=-1).cpu()
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return F.cross_entropy(logits, labels.to(logits.device), reduction="sum")


def _projection(part: Tensor, generator: torch.Generator) -> Tensor:
    """``<P, e> / |P|`` of one map, |P| per image on average."""
    noise = torch.randn(part.shape, generator=generator).to(part.device)
    size = part.detach().square().sum().div(max(1, len(part))).sqrt()
    return (part * noise).sum() / size.clamp_min(torch.finfo(part.dtype).tiny)


def self_divergence_loss(output: Output, generator: torch.Generator) -> Tensor:
    """KL divergence of the prediction from itself, as PTQ4ViT's released code ends up computing.

    Its exact gradient is zero: what comes out is the rounding noise of the backward pass. Of feature maps
    the softmax is taken over channels.
    """
    if not isinstance(output, Tensor):
        parts = [
            self_divergence_loss(part.movedim(1, -1).flatten(0, -2), generator) for part in output
        ]
        return torch.stack(parts).sum()
    logits = output
    target = logits.detach().softmax(dim=-1)
    return F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")


def squared_gradients(
    prediction: Output,
    outputs: Sequence[Tensor],
    loss: OutputLoss,
    draws: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return the mean over draws of (dL/doutput)^2 for each of ``outputs``, in their shapes.

    Args:
        prediction: the model's, with a graph that goes through ``outputs``; it is freed.
        outputs: of operations or segments.
        loss: drawn anew ``draws`` times.
        draws: at least 1.
        generator: of the draws.
    """
    sums = [torch.zeros_like(output) for output in outputs]
    for draw in range(draws):
        with torch.enable_grad():
            value = loss(prediction, generator)
        gradients = torch.autograd.grad(value, outputs, retain_graph=draw < draws - 1)
        for total, gradient in zip(sums, gradients, strict=True):
            total.addcmul_(gradient, gradient, value=1 / draws)
    return sums


def require_gradient(squared_gradient: Tensor, name: str, kind: str) -> None:
    """Raise `MethodError` if no error would count at the ``kind`` (layer or block) called ``name``."""
    if bool(squared_gradient.amax() == 0):
        raise MethodError(
            f"{name}: the loss has no gradient here, so no scale can be preferred; "
            f"check that the model's output depends on this {kind}"
        )
