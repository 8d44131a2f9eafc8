"""Block-wise reconstruction: one engine, configured by methods."""

from methods.quantization.reconstruction.engine import reconstruct
from methods.quantization.reconstruction.learnables import (
    BatchRanges,
    Clipping,
    Learnable,
    Roundings,
    Smoothing,
    Steps,
    Weights,
)
from methods.quantization.reconstruction.recipe import Recipe, Weighting
from methods.quantization.reconstruction.terms import (
    BlockError,
    FisherError,
    Homologous,
    LocalDivergence,
    MeanError,
    NegativeLogCosine,
    PredictionDivergence,
    Term,
)
from methods.quantization.reconstruction.units import Granularity

__all__ = [
    "BatchRanges",
    "BlockError",
    "Clipping",
    "FisherError",
    "Granularity",
    "Homologous",
    "Learnable",
    "LocalDivergence",
    "MeanError",
    "NegativeLogCosine",
    "PredictionDivergence",
    "Recipe",
    "Roundings",
    "Smoothing",
    "Steps",
    "Term",
    "Weighting",
    "Weights",
    "reconstruct",
]
