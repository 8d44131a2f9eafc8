"""QDrop: reconstruction with randomly dropped activation quantization."""

from __future__ import annotations

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.reconstruction import Reconstruction
from vit_ptq_bench.methods.api.registry import register_method


@register_method
class QDrop(Reconstruction):
    """Block reconstruction in which half of the activations, drawn anew each time, stay unquantized.

    Source: Wei et al., ICLR 2022 (arXiv 2203.05740), for CNNs; on the base that is known to work on vision
    transformers: RepQ-ViT's ranges and reparameterized LayerNorm outputs, the scales of attention maps by the
    error of attention x value, all uniform and static. Roundings (profile ``paper``) or weights (``fast``)
    and activation steps are trained on the squared error of each unit's output; the unit's input mixes the
    quantized prefix and full precision value by value. Authors' convention: one scale per head, 1024 images.
    Deviations: the base; no 8-bit exception for the classifier; activation steps have LSQ's gradient scale.
    """

    name = "qdrop"
    paper = "Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit PTQ, ICLR 2022"
    version = 3

    def recipe(self) -> parts.Recipe:
        """Half of the input and of the inner activations unquantized."""
        return self.configured([parts.BlockError()], input_mix=0.5, keep=0.5)
