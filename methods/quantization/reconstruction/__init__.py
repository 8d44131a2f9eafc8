"""Block-wise reconstruction: one engine, configured by methods."""

from methods.quantization.reconstruction.engine import Recipe, reconstruct
from methods.quantization.reconstruction.terms import (
    BlockError,
    LocalDivergence,
    PredictionDivergence,
    Term,
)

__all__ = [
    "BlockError",
    "LocalDivergence",
    "PredictionDivergence",
    "Recipe",
    "Term",
    "reconstruct",
]
