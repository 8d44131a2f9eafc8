"""The transforms by name; without torch, for the plan and for what only prints.

One more transform is one more entry here and the module that it names, see `base.Transform`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vit_ptq_bench.methods.quantization.listed_names import listed_names

SETTING = "transforms"
"""The setting of every method that names them; no method may have a parameter of this name."""


@dataclass(frozen=True)
class TransformCard:
    """What can be said of a transform without running it.

    Attributes:
        module: the module of this package that provides it.
        description: what it does, for `bench list transforms`.
        other_operation: what of the model's operations is another one behind it, in words; empty where its
            full-precision function stays.
    """

    module: str
    description: str
    other_operation: str = ""


TRANSFORMS: Mapping[str, TransformCard] = {
    "centre-keys": TransformCard(
        "centring", "subtract from each key channel its mean over the calibration images"
    ),
    "equalise-heads": TransformCard(
        "heads", "mix value channels per head so that all carry equal power"
    ),
    "refit-relu": TransformCard(
        "relu",
        "ReLU in the place of GELU, fc2 refitted (APHQ-ViT, GLF-Q): another operation",
        other_operation="GELU replaced by ReLU: another operation",
    ),
    "rotate-heads": TransformCard(
        "heads", "rotate queries with keys, and values with the projection, by a random Hadamard"
    ),
    "rotate-heads-random": TransformCard(
        "heads", "the same by random orthogonal matrices, for any width"
    ),
    "rotate-residual": TransformCard(
        "residual",
        "rotate residual streams by a random Hadamard form that fixes the all-ones vector",
    ),
    "rotate-residual-random": TransformCard(
        "residual", "the same by a random orthogonal matrix, for any width"
    ),
    "shift-norms": TransformCard(
        "norms", "centre LayerNorm outputs per channel and level their ranges, by percentiles"
    ),
    "smooth-norms": TransformCard(
        "norms", "level maxima between LayerNorm outputs and weights (SmoothQuant, alpha 0.5)"
    ),
}
"""Name, in lower-case kebab -> card."""


def check_transforms(names: object) -> tuple[str, ...]:
    """Return names of transforms as a tuple.

    Args:
        names: a list or tuple of names, each once; they act in this order.

    Raises:
        MethodError: something else, a name that no transform has (near ones are named), or one twice.
    """
    return listed_names(names, SETTING, TRANSFORMS, "transform")
