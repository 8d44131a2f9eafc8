"""QDrop: reconstruction with randomly dropped activation quantization."""

from vit_ptq_bench.methods.api.reconstruction import Reconstruction
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.reconstruction.losses import BlockError
from vit_ptq_bench.methods.quantization.reconstruction.recipe import Recipe


@register_method
class QDrop(Reconstruction):
    """Block reconstruction in which half of the activations, drawn anew each time, stay unquantized.

    Source: Wei et al., ICLR 2022 (arXiv 2203.05740), for CNNs; on the base that is known to work on vision
    transformers. Roundings (profile ``paper``) or weights (``fast``) and activation steps are learned on the
    squared error of each unit's output; the unit's input mixes the quantized prefix and full precision
    value by value. Authors' convention: one scale per head, 1024 images. Deviations: the base's ranges are
    RepQ-ViT's percentiles, but for the attention map; no 8-bit exception for the classifier; activation steps
    have LSQ's gradient scale.
    """

    name = "qdrop"
    paper = "Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit PTQ, ICLR 2022"
    version = 3

    def recipe(self) -> Recipe:
        """Half of the input and of the inner activations unquantized."""
        return self.configured([BlockError()], input_mix=0.5, keep=0.5)
