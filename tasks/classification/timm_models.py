"""timm's models: names, weights, preprocessing. Nothing else of the tasks imports timm."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from vit_ptq_bench.tasks.errors import TaskError


def pretrained_names(patterns: Sequence[str]) -> list[str]:
    """Return timm's names with the tags of pretrained weights that match any of the patterns, sorted."""
    return sorted(timm.list_models(list(patterns), pretrained=True))


def is_architecture(model: str) -> bool:
    """Whether timm has an architecture of that name, with or without a tag."""
    return bool(timm.is_model(model))


def near_names(model: str) -> list[str]:
    """Return up to three architectures that are called nearly so."""
    return difflib.get_close_matches(model, timm.list_models(), n=3)


def full_name(model: str) -> str:
    """Return the name with its tag: timm gives a bare name its default weights."""
    cfg = timm.get_pretrained_cfg(model)
    tag = getattr(cfg, "tag", "") if cfg is not None else ""
    return model if "." in model or not tag else f"{model}.{tag}"


def create_untrained(model: str) -> nn.Module:
    """Return a model with random weights."""
    module: nn.Module = timm.create_model(model, pretrained=False)
    return module


def create_pretrained(model: str) -> nn.Module:
    """Return a model with timm's weights, in eval mode; they are downloaded if need be.

    Raises:
        TaskError: they cannot be had.
    """
    try:
        module: nn.Module = timm.create_model(model, pretrained=True)
    except Exception as error:  # hub, network and disk each raise their own kinds
        raise TaskError(
            f"{model}: timm could not get the pretrained weights ({type(error).__name__}: {error}); "
            "give a file with --checkpoint"
        ) from error
    return module.eval()


def create_by_class(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model of one of the classes of ``timm.models``."""
    module: nn.Module = getattr(timm.models, name)(**settings)
    return module


def preprocessing(module: nn.Module) -> tuple[dict[str, Any], Any]:
    """Return timm's data config of a model, and the transform of its evaluation."""
    config: dict[str, Any] = resolve_model_data_config(module)
    return config, create_transform(**config, is_training=False)
