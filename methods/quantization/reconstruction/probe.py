"""Errors of a unit and gradients of the prediction, which losses are measured from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.activations import take, take_output
from vit_ptq_bench.methods.quantization.model.structure import Output

TEMPERATURE = 20.0
"""Of both softmaxes in the divergence whose gradients are taken (the authors' released code)."""


@dataclass(frozen=True)
class Probe:
    """A unit and the full-precision model around it, asked with the images that it is trained on.

    Attributes:
        run: the unit as it is now.
        exact, quantized: its inputs for all images, from the full-precision and the quantized prefix.
        target: its full-precision output for all images.
        prediction: the full-precision model's, for all images.
        rest: the rest of the model in full precision, up to the prediction.
        parts: numbers of the images ([b] each), a pass each.
        drop: switches the drops of the recipe inside the unit on or off.
        generator: for random probes.
        device: where all is computed.
    """

    run: Callable[[Tensor], Tensor]
    exact: Tensor
    quantized: Tensor
    target: Tensor
    prediction: Output
    rest: Callable[[Tensor, Tensor], Output]
    parts: Sequence[Tensor]
    drop: Callable[[bool], None]
    generator: torch.Generator
    device: torch.device

    def targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers of the images ([b]) and the unit's full-precision output ([b, ...])."""
        for chosen in self.parts:
            yield chosen, take(self.target, chosen, self.device)

    @torch.no_grad()
    def errors(self, prefix: bool, drop: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield numbers of images, the unit's output z^ and its error z^ - z.

        Args:
            prefix: whether the prefix is quantized too, or the unit alone.
            drop: whether activations inside the unit are dropped as in training.
        """
        self.drop(drop)
        for chosen, target in self.targets():
            source = self.quantized if prefix else self.exact
            output = self.run(take(source, chosen, self.device))
            yield chosen, output, output - target
        self.drop(False)

    def gradient(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Return, image by image, the gradient of the prediction's divergence at the unit's output.

        The divergence is ``KL(softmax(p / T) || softmax(p^ / T))`` with T = 20, p^ the prediction for
        ``output`` through the full-precision rest; of a detector the relative squared error of its maps.
        """
        output = output.detach().requires_grad_()
        target = take_output(self.prediction, chosen, self.device)
        with torch.enable_grad():
            value = _divergence(target, self.rest(output, chosen))
        return torch.autograd.grad(value, output)[0]


def _divergence(target: Output, found: Output) -> Tensor:
    """Summed over images, so that a gradient belongs to one image."""
    if isinstance(target, Tensor) and isinstance(found, Tensor):
        return F.kl_div(
            F.log_softmax(found / TEMPERATURE, dim=-1),
            F.log_softmax(target / TEMPERATURE, dim=-1),
            reduction="sum",
            log_target=True,
        )
    parts = [
        (
            (mine - true).square().flatten(1).sum(1)
            / true.square().flatten(1).sum(1).clamp_min(1e-30)
        ).sum()
        for true, mine in zip(target, found, strict=True)
    ]
    return torch.stack(parts).mean()
