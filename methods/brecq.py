"""BRECQ: block reconstruction."""

from methods.quantization.reconstruction import BlockError, Recipe
from methods.reconstruction import Reconstruction
from methods.registry import register_method


@register_method
class Brecq(Reconstruction):
    """Block reconstruction of each unit on its full-precision input.

    Source: Li et al., ICLR 2021 (arXiv 2102.05426), for CNNs; on the base that is known to work on vision
    transformers. AdaRound roundings and activation steps are learned on the squared error of each unit's
    output. Authors' convention: one scale per head, 1024 images. Deviations: one joint stage with activations
    quantized instead of weights first; squared error, not the Fisher-weighted option; 2000 iterations by
    default instead of 20000; no 8-bit exception for the classifier.
    """

    name = "brecq"
    paper = "Li et al., BRECQ: Pushing the Limit of PTQ by Block Reconstruction, ICLR 2021"

    def recipe(self) -> Recipe:
        """Full-precision input, every activation quantized."""
        return self.configured([BlockError()], input_mix=0.0, keep=1.0)
