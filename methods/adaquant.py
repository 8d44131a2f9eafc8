"""AdaQuant: layer by layer, weights, biases and steps trained on the layer's output."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.api.reconstruction import Reconstruction
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, equal_table


@dataclass(frozen=True)
class AdaquantParameters(ReparameterizationParameters):
    """Settings of `Adaquant`; those of the start are RepQ-ViT's.

    Attributes:
        iterations: per layer.
        batch_size: images per iteration.
        weight_rate: Adam's learning rate of the weights.
        bias_rate: of the biases.
        step_rate: of the logarithms of the scales of weights and inputs: a share of each scale.
        sequential: a layer's input comes from the quantized layers before it; else from the full-precision
            model (the authors' parallel variant).
    """

    iterations: int = bounded(100, at_least=0)
    batch_size: int = counted(4)
    weight_rate: float = bounded(1e-5, at_least=0)
    bias_rate: float = bounded(1e-3, at_least=0)
    step_rate: float = bounded(1e-3, at_least=0)
    sequential: bool = True


@register_method
class Adaquant(Reconstruction):
    """Each layer's weights, bias and scales trained so that its quantized output is the full-precision one.

    Source: Hubara et al., ICML 2021 (arXiv 2006.10518), for CNNs: the weight plus an unbounded addition is
    trained through the rounding, with the bias and the scales of weight and input, by Adam on the squared
    error of the layer's output; rates 1e-5 and 1e-3, 100 iterations a layer. On the base that is known to
    work on vision transformers: RepQ-ViT's ranges and reparameterized LayerNorm outputs, the scales of
    attention maps by the error of attention x value. Convention: the common table, all uniform and static.
    Deviations: the base; scales are trained as logarithms, for at their rate a plain scale of 0.01 would be
    gone after ten iterations; rates fall as half a cosine; the head is trained on the KL of its logits, as
    every reconstruction here; operands of the attention products, which no layer with a weight has, stay as
    calibrated; the integer program for mixed bit widths and the para-normalization behind it are left out:
    bits are the table's, biases are trained here already, and there is no batch norm to estimate again.
    """

    name = "adaquant"
    paper = (
        "Hubara et al., Accurate Post Training Quantization With Small Calibration Sets, ICML 2021"
    )
    profiles = {}
    Parameters = AdaquantParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table."""
        return equal_table(bits)

    def notes(self) -> tuple[str, ...]:
        """Return how long is trained what."""
        p = self.parameters
        inputs = "quantized" if p.sequential else "full-precision"
        return (
            f"trains weights, biases and scales on {inputs} inputs, {p.iterations} iterations "
            f"of {p.batch_size} images per layer",
        )

    def recipe(self) -> parts.Recipe:
        """Layer by layer, nothing mixed or dropped."""
        p = self.parameters
        return parts.Recipe(
            losses=[parts.MeanError()],
            trainables=(
                parts.Weights(p.weight_rate),
                parts.WeightScales(p.step_rate),
                parts.LogSteps(p.step_rate),
                parts.Biases(p.bias_rate),
            ),
            unit="layer",
            iterations=p.iterations,
            batch_size=p.batch_size,
            input_mix=1.0 if p.sequential else 0.0,
            keep=1.0,
        )
