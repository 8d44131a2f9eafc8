"""QFT: every degree of freedom of the quantized layers finetuned at once, end to end (from the abstract)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.reconstruction import Frontier
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, equal_table

TEMPERATURE = 4.0
"""Of the softmaxes of the prediction's divergence."""


@dataclass(frozen=True)
class QftParameters(ReparameterizationParameters):
    """Settings of `Qft`; a rate of 0 leaves a kind of quantity as it is.

    Attributes:
        iterations: of the whole model; 80 of 8 images are 20 epochs over 32 images.
        batch_size: images per iteration.
        weight_rate: Adam's learning rate of the weights; it falls to zero as half a cosine, as all rates do.
        bias_rate: the same of the layers' biases.
        scale_rate: the same of the logarithms of all scales, of weights and activations.
        factor_rate: the same of the logarithms of the channel factors.
        decay: what it costs a weight to leave its start, see `quantization.WeightShifts`.
        prediction_weight: of the prediction's divergence, beside the feature's 1.
        holdout: share of the images that judges the training instead: the model ends in its best state
            there, at worst the start; see `quantization.Recipe`.
        start: the calibration to begin with: RepQ-ViT's percentiles (``repq``), both ends of every range by
            squared error (``searched``), or this project's transforms and weights solved in ``closed-form``.
        attention: form of the attention map's quantizer: ``log-sqrt2`` is RepQ-ViT's, ``log`` has the base
            that its product with the values asks for.
        gelu: form of the quantizer behind GELU, ``uniform``, ``shifted-log`` or ``offset-log``.
    """

    iterations: int = bounded(80, at_least=0)
    batch_size: int = counted(8)
    weight_rate: float = bounded(1e-4, at_least=0)
    bias_rate: float = bounded(1e-3, at_least=0)
    scale_rate: float = bounded(5e-3, at_least=0)
    factor_rate: float = bounded(1e-3, at_least=0)
    decay: float = bounded(0.1, at_least=0)
    prediction_weight: float = bounded(0.1, at_least=0)
    holdout: float = bounded(0.0, at_least=0, at_most=0.9)
    start: Literal["repq", "searched", "closed-form"] = "repq"
    attention: Literal["log-sqrt2", "log", "uniform"] = "log-sqrt2"
    gelu: Literal["uniform", "shifted-log", "offset-log"] = "uniform"


@register_method
class Qft(Frontier):
    """Weights, biases, all scales and the factors between channels, trained together towards the original.

    Source: Finkelstein et al., ECCV Workshops 2022 (arXiv 2212.02634). What the abstract states: all degrees
    of freedom of a quantized network, its weights and scales, are finetuned jointly and end to end, in one
    step, from little unlabelled data; weights are scaled in both of their channels ("doubly channel-wise"),
    for scales of activations and factors between layers are the same quantities seen from two layers. What is
    our design, for the text could not be had and is of CNNs: factors between channels exist where a
    transformer can fold them, behind each LayerNorm and from the values to the projection; scales and factors
    are trained as logarithms, with LSQ's gradients; loss: mean squared error of the penultimate feature over
    its mean square, plus a tenth of the divergence of the logits at temperature 4 (for a detector both are
    the relative error of the neck's maps); weights are held to their start, for 32 images are few; RepQ-ViT's
    ranges as start. Not the authors' numbers or their epochs over thousands of images. Convention: the common
    table, static, 32 images.
    """

    name = "qft"
    version = 1
    paper = (
        "Finkelstein et al., QFT: Post-training Quantization via Fast Joint Finetuning, ECCVW 2022"
    )
    fidelity = "inspired"
    note = "re-implementation from the abstract; loss, factors and rates are this project's design"
    calibration_images = 32
    detection_images = 32
    quick = {"iterations": 2, "batch_size": 4}
    profiles = {}
    Parameters = QftParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table: nothing is known of the authors' own for transformers."""
        return equal_table(bits)

    def notes(self) -> tuple[str, ...]:
        """Return that it is from the abstract, and how long is trained what."""
        p = self.parameters
        rates = {
            "weights": p.weight_rate,
            "biases": p.bias_rate,
            "scales": p.scale_rate,
            "channel factors": p.factor_rate,
        }
        trained = ", ".join(what for what, rate in rates.items() if rate > 0) or "nothing"
        judged = f"; a share of {p.holdout:g} of the images judges it" if p.holdout > 0 else ""
        return (
            self.note,
            f"trains {trained} end to end, {p.iterations} iterations of {p.batch_size} images{judged}",
        )

    def recipe(self) -> parts.Recipe:
        """The whole model as one unit, nothing mixed or dropped."""
        p = self.parameters
        return parts.Recipe(
            losses=(
                parts.FeatureError(relative=True),
                parts.OutputDivergence(weight=p.prediction_weight, temperature=TEMPERATURE),
            ),
            trainables=(
                parts.WeightShifts(p.weight_rate, decay=p.decay),
                parts.WeightScales(p.scale_rate),
                parts.ChannelFactors(p.factor_rate),
                parts.LogScales(p.scale_rate),
                parts.LogSteps(p.scale_rate),
                parts.Biases(p.bias_rate),
            ),
            unit="model",
            iterations=p.iterations,
            batch_size=p.batch_size,
            input_mix=1.0,
            keep=1.0,
            weighting="plain",
            holdout=p.holdout,
        )
