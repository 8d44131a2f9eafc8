"""Reconstruction losses: on the output of a unit, on the model's prediction, on the layers inside.

A recipe's loss is the weighted sum of one or several of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.quantization.model.structure import Output
from vit_ptq_bench.methods.quantization.reconstruction.probe import Probe


@dataclass
class Batch:
    """The activations that losses compare in one iteration; tensors are float32, images first.

    Attributes:
        output: output of the quantized unit for the mixed input.
        target: output of the full-precision unit for the full-precision input.
        clean: output of the quantized unit for the quantized input, no mix; None unless asked for.
        rest: the rest of the model in full precision, up to the prediction.
        prediction: the full-precision model's: logits [b, classes], or a detector's feature maps.
        inner, inner_target: outputs of the unit's operations by name, quantized and full precision.
        importance: squared gradient of the loss at the unit's full-precision output, of mean 1.
        homologous: output of the full-precision unit for the quantized input.
        features: the full-precision model's penultimate feature [b, F]: what enters the classifier; of a
            detector its feature maps.
        features_of: the same for the unit's output, through the rest of the model in full precision.
    """

    output: Tensor
    target: Tensor
    rest: Callable[[Tensor], Output]
    prediction: Output
    clean: Tensor | None = None
    inner: dict[str, Tensor] = field(default_factory=dict)
    inner_target: dict[str, Tensor] = field(default_factory=dict)
    importance: Tensor | None = None
    homologous: Tensor | None = None
    features: Output | None = None
    features_of: Callable[[Tensor], Output] | None = None


@dataclass(frozen=True)
class Loss(ABC):
    """One reconstruction loss; a recipe adds up several.

    Attributes:
        weight: its share; a loss of weight 0 is not computed at all.
        floor: smallest value by which the loss is divided when it is normalised.
        every: it counts in every so-manieth iteration, with so many times the weight.
        needs_clean: whether it needs `Batch.clean` and `Batch.rest`.
        needs_inner: whether it needs the operations' outputs.
        needs_importance: whether it needs `Batch.importance`.
        needs_homologous: whether it needs `Batch.homologous`.
        needs_features: whether it needs `Batch.features`.
        of_model: whether it compares what the model says, so that the whole model can be one unit.
        is_measured: whether `measured` looks at the unit.
        refreshes: how often it is measured in the course of a unit; 0 and 1: at the start only.
    """

    weight: float = 1.0
    floor: float = 1e-8
    every: int = 1
    needs_clean: ClassVar[bool] = False
    needs_inner: ClassVar[bool] = False
    needs_importance: ClassVar[bool] = False
    needs_homologous: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    of_model: ClassVar[bool] = False
    is_measured: ClassVar[bool] = False

    @property
    def refreshes(self) -> int:
        return 0

    def measured(self, probe: Probe) -> "Loss":
        """Return the loss with what it has to know of the unit that ``probe`` asks; itself by default."""
        return self

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss's value (scalar), differentiable."""


def divergence(target: Tensor, output: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(target / T) || softmax(output / T)), mean over all but the last dimension."""
    classes = output.shape[-1]
    return F.kl_div(
        F.log_softmax(output / temperature, dim=-1).reshape(-1, classes),
        F.log_softmax(target / temperature, dim=-1).reshape(-1, classes),
        reduction="batchmean",
        log_target=True,
    )


def prediction_difference(target: Output, output: Output, temperature: float) -> Tensor:
    """Return how far a prediction is off: KL of logits, or the mean relative squared error of feature maps.

    ``mean over maps of |P^ - P|^2 / |P|^2``: a detector has no logits of the image, and proposals, their
    selection and sampling cannot be differentiated.
    """
    if isinstance(target, Tensor) and isinstance(output, Tensor):
        return divergence(target, output, temperature)
    parts = [
        (mine - true).square().sum() / true.square().sum().clamp_min(1e-30)
        for true, mine in zip(target, output, strict=True)
    ]
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class BlockError(Loss):
    """Squared error of the unit's output, summed over channels, mean over images and tokens."""

    def __call__(self, batch: Batch) -> Tensor:
        return (batch.output - batch.target).square().sum(dim=-1).mean()


@dataclass(frozen=True)
class MeanError(Loss):
    """Mean squared error of the unit's output over everything (LRQuant)."""

    def __call__(self, batch: Batch) -> Tensor:
        return (batch.output - batch.target).square().mean()


@dataclass(frozen=True)
class FisherError(Loss):
    """Squared error weighted by the diagonal of the Fisher information (BRECQ, equation 10)."""

    needs_importance: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.importance is not None
        error = (batch.output - batch.target).square().mul(batch.importance)
        return error.sum(dim=-1).mean()


@dataclass(frozen=True)
class NegativeLogCosine(Loss):
    """``-log |mean over tokens of cos(y, y^)|``: the direction of the outputs (LRQuant, equation 9)."""

    def __call__(self, batch: Batch) -> Tensor:
        cosine = F.cosine_similarity(batch.output, batch.target, dim=-1).mean().abs()
        return -cosine.clamp_min(1e-6).log()


@dataclass(frozen=True)
class Homologous(Loss):
    """Another loss against the full-precision unit on the same, quantized input (LRQuant+)."""

    loss: Loss = field(default_factory=MeanError)
    needs_homologous: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.homologous is not None
        return self.loss(replace(batch, target=batch.homologous))


@dataclass(frozen=True)
class LogitDivergence(Loss):
    """KL of the unit's output, for the unit that gives the logits."""

    def __call__(self, batch: Batch) -> Tensor:
        return divergence(batch.target, batch.output, 1.0)


@dataclass(frozen=True)
class PredictionDivergence(Loss):
    """KL of the model's prediction when the unit's output goes through the rest in full precision.

    The prediction difference of PD-Quant (Liu et al., CVPR 2023, equation 5) and our reading of MGRQ's
    extra-block global supervision; for a detector the error of the neck's feature maps instead.
    """

    temperature: float = 1.0
    needs_clean: ClassVar[bool] = True
    of_model: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.clean is not None
        return prediction_difference(batch.prediction, batch.rest(batch.clean), self.temperature)


@dataclass(frozen=True)
class OutputDivergence(Loss):
    """`PredictionDivergence` for the unit's output as it is trained, mix and drops included."""

    temperature: float = 1.0
    of_model: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return prediction_difference(batch.prediction, batch.rest(batch.output), self.temperature)


@dataclass(frozen=True)
class FeatureError(Loss):
    """Error of the penultimate feature when the unit's output goes through the rest in full precision.

    The global loss of GLF-Q (Sun et al., 2026): mean squared error of what enters the classifier's linear
    layer, the class token or the mean of the tokens (a distilled DeiT's two tokens side by side). For a
    detector the mean relative squared error of the neck's feature maps; the authors compare the features of
    regions of interest there, of fixed proposals.

    Attributes:
        relative: divide a classifier's error by the feature's mean square over the batch.
    """

    relative: bool = False
    needs_features: ClassVar[bool] = True
    of_model: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.features is not None and batch.features_of is not None
        found = batch.features_of(batch.output)
        if isinstance(found, Tensor) and isinstance(batch.features, Tensor):
            error = (found - batch.features).square().mean()
            if not self.relative:
                return error
            return error / batch.features.square().mean().clamp_min(1e-30)
        return prediction_difference(batch.features, found, 1.0)


@dataclass(frozen=True)
class LocalDivergence(Loss):
    """Mean over inner layers of the KL between the channel distributions of their outputs.

    Outputs are divided by the full-precision output's standard deviation, else layers with small outputs
    would have a flat softmax and no gradient. Our reading of MGRQ's intra-block local supervision.
    """

    needs_inner: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        values = [
            divergence(target / (deviation := target.std()), batch.inner[name] / deviation, 1.0)
            for name, target in batch.inner_target.items()
        ]
        return sum(values, start=batch.output.new_zeros(())) / max(1, len(values))
