"""Classifiers from descriptions of networks, as files of saved models hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vit_ptq_bench.tasks import classification
from vit_ptq_bench.tasks.api.network import Network
from vit_ptq_bench.tasks.classification.zoo import build_architecture
from vit_ptq_bench.tasks.errors import TaskError

TIMM, BUNDLED = "timm", "bundled"

PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
"""Of timm's data config, what its transform of the evaluation asks for."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def describe_timm(model: str, arguments: Mapping[str, Any], module: nn.Module) -> Network:
    """Return the description of a timm model.

    Args:
        model: its name.
        arguments: that it was built with, the number of outputs among them.
        module: the model.
    """
    config, _ = classification.preprocessing(module)
    plain = {name: _listed(config[name]) for name in PREPROCESSING if name in config}
    settings = {name: _listed(value) for name, value in arguments.items()}
    return Network(TIMM, classification.full_name(model), settings, plain)


def build_timm(network: Network, at_most: int | None = None) -> nn.Module:
    """Return the timm model of a description, in eval mode, with random weights.

    Args:
        network: from `describe_timm`.
        at_most: parameters that it may have; None: any number.

    Raises:
        TaskError: of another builder, unknown to this timm, arguments that it does not take, or too large.
    """
    _require_builder(network, TIMM)
    name, arguments = network.architecture, network.arguments
    if not classification.is_architecture(name):
        raise TaskError(
            f"this timm has no architecture {name!r}, which the file is of; another timm may have it"
        )
    classification.check_arguments(name, arguments)
    with torch.device("meta"):
        _require_small(classification.create_untrained(name, arguments=arguments), at_most)
    module = classification.create_untrained(name, arguments=arguments)
    known: Any = module.default_cfg
    module.pretrained_cfg = module.default_cfg = {**known, **_checked(network.preprocessing)}  # type: ignore[assignment]
    return module.eval()


def build_bundled(network: Network, at_most: int | None = None) -> nn.Module:
    """Return the bundled architecture of a description, in eval mode, with random weights.

    Raises:
        TaskError: of another builder, no bundled model of that name, or too large.
    """
    _require_builder(network, BUNDLED)
    module = build_architecture(network.architecture)
    _require_small(module, at_most)
    return module


def _require_builder(network: Network, builder: str) -> None:
    if network.builder != builder:
        raise TaskError(
            f"a network of {network.builder!r} is none of this task's, whose are of {builder!r}"
        )


def _require_small(module: nn.Module, at_most: int | None) -> None:
    count = sum(parameter.numel() for parameter in module.parameters())
    if at_most is not None and count > at_most:
        raise TaskError(
            f"the network has {count} parameters, more than the file can hold ({at_most}); it was edited or "
            "damaged"
        )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checked(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The data config, with tuples as timm has them.

    Raises:
        TaskError: a part is missing or has the wrong form.
    """
    right = {
        "input_size": _numbers(preprocessing.get("input_size"), int, above=0),
        "mean": _numbers(preprocessing.get("mean"), float),
        "std": _numbers(preprocessing.get("std"), float, above=0),
        "interpolation": preprocessing.get("interpolation") in INTERPOLATIONS,
        "crop_pct": isinstance(preprocessing.get("crop_pct"), float | int),
        "crop_mode": preprocessing.get("crop_mode", "center") in ("center", "squash", "border"),
    }
    wrong = [name for name, holds in right.items() if not holds]
    if wrong or set(preprocessing) - set(PREPROCESSING):
        raise TaskError(
            f"the preprocessing of the network is wrong or incomplete: "
            f"{', '.join(wrong) or sorted(set(preprocessing) - set(PREPROCESSING))}"
        )
    return {name: tuple(v) if isinstance(v, list) else v for name, v in preprocessing.items()}


def _numbers(value: object, kind: type, above: float | None = None) -> bool:
    """Whether it is a list of three finite numbers of a kind, all above a bound."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    kinds = (int,) if kind is int else (int, float)
    if not all(isinstance(v, kinds) and not isinstance(v, bool) for v in value):
        return False
    return all(abs(v) < 1e6 and (above is None or v > above) for v in value)
