"""Transforms by name, one after the other."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.transforms.base import Transform
from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS, check_transforms


@torch.no_grad()
def apply_transforms(model: QuantizedModel, names: Sequence[str], calibration: Calibration) -> None:
    """Change a wrapped model by transforms, in the order given; the full-precision function stays.

    Order matters: each sees the model as the ones before it left it, ``rotate-residual`` moves all scales and
    shifts of LayerNorms into the layers behind them, also those that ``shift-norms`` has put there. Of those
    whose card names another operation the function does not stay, and what a method then takes for full
    precision is the changed model.

    Args:
        model: the wrapped model, not frozen; its quantizers are inactive and stay so.
        names: of `TRANSFORMS`, each once.
        calibration: gives every statistic, and with its seed whatever is random.

    Raises:
        MethodError: an unknown name, a model that lacks what a transform needs (nothing has been changed
            then), or NaN and infinite activations.
    """
    names = check_transforms(names)
    for name in names:
        problem = transform_problem(name, model)
        if problem is not None:
            raise MethodError(problem)
    for name in names:
        _provided(name).apply(model, calibration)


def transform_problem(name: str, model: QuantizedModel) -> str | None:
    """Return in words why a model cannot take the transform ``name``, or None.

    Raises:
        MethodError: there is no such transform.
    """
    check_transforms([name])
    problem = _provided(name).problem(model)
    return problem and f"{name}: {problem}; leave {name} out for this model"


def _provided(name: str) -> Transform:
    package = __name__.rpartition(".")[0]
    module = importlib.import_module(f"{package}.{TRANSFORMS[name].module}")
    provided: Transform = module.PROVIDED[name]
    return provided
