"""timm's models: names, weights, preprocessing. Nothing else of the tasks imports timm."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from vit_ptq_bench.tasks.errors import TaskError


def pretrained_names(patterns: Sequence[str]) -> list[str]:
    """Return timm's names with the tags of pretrained weights that match any of the patterns, sorted."""
    return sorted(timm.list_models(list(patterns), pretrained=True))


def pretrained_outputs(model: str) -> int:
    """Return how many outputs a model has with its pretrained weights; 0: it has no classifier."""
    return int(getattr(timm.get_pretrained_cfg(model), "num_classes", 0) or 0)


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


def licence(model: str) -> str | None:
    """Return the licence of timm's weights of a model; None: timm does not say."""
    found = getattr(timm.get_pretrained_cfg(model), "license", None)
    return str(found) if found else None


def weights_source(model: str) -> str:
    """Return where timm has pretrained weights of a model from; empty: it has none.

    That is ``hf-hub:<repository>``, with ``:<file>`` where it names one, an address, or a file.
    """
    found = timm.get_pretrained_cfg(model)
    if found is None:
        return ""
    if found.hf_hub_id and not found.file:
        return f"hf-hub:{found.hf_hub_id}" + (
            f":{found.hf_hub_filename}" if found.hf_hub_filename else ""
        )
    return found.file or found.url or ""


RESERVED = (
    *("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    *("features_only", "scriptable", "exportable", "no_jit"),
)
"""Arguments of timm's that say where weights come from, or make another thing than a classifier."""


def create_untrained(
    model: str, classes: int | None = None, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a model with random weights.

    Args:
        model: its name.
        classes: of its outputs; None: as many as timm, or ``arguments``, give it.
        arguments: of timm's ``create_model``, such as ``img_size``.

    Raises:
        TaskError: timm does not build the model with these arguments.
    """
    settings = dict(arguments or {})
    if classes is not None:
        settings.setdefault("num_classes", classes)
    try:
        module: nn.Module = timm.create_model(model, pretrained=False, **settings)
    except Exception as error:
        if not arguments:
            raise
        raise _not_built(model, arguments, error) from error
    _note_size(module, settings)
    return module


def check_arguments(model: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments with which timm does not build a model, without the memory for its weights.

    Raises:
        TaskError: one that is reserved, or that the model does not take.
    """
    create_skeleton(model, arguments)


def create_skeleton(model: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a model on the meta device: its layers, without memory for their weights.

    Args:
        model: its name; nothing is downloaded.
        arguments: of timm's ``create_model``.

    Raises:
        TaskError: an argument that is reserved, or that the model does not take.
    """
    for name in arguments or {}:
        if name in RESERVED:
            raise TaskError(f"{model}: model_args cannot have {name}")
    with torch.device("meta"):
        return create_untrained(model, arguments=arguments)


def _not_built(model: str, arguments: Mapping[str, Any], error: Exception) -> TaskError:
    told = ", ".join(f"{name} = {value!r}" for name, value in arguments.items())
    return TaskError(
        f"{model}: timm does not build it with {told} ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:160]})"
    )


def _note_size(module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Images are prepared by what timm notes of a model, which another ``img_size`` does not change there."""
    size = settings.get("img_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        noted: Any = module.default_cfg
        module.pretrained_cfg = module.default_cfg = {**noted, "input_size": (3, height, width)}  # type: ignore[assignment]


def create_pretrained(model: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a model with timm's weights, in eval mode; they are downloaded if need be.

    Args:
        model: its name.
        arguments: of timm's ``create_model``, such as ``img_size``.

    Raises:
        TaskError: they cannot be had.
    """
    try:
        module: nn.Module = timm.create_model(model, pretrained=True, **(arguments or {}))
        _note_size(module, arguments or {})
    except Exception as error:  # hub, network and disk each raise their own kinds
        raise TaskError(
            f"{model}: timm could not get the pretrained weights ({type(error).__name__}: {error}); "
            "give a file with --checkpoint"
        ) from error
    return module.eval()


def adapted_state(
    state: dict[str, Tensor], module: nn.Module
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return weights of another layout or image size as timm's model takes them, with what was done to them.

    That is what timm does with published weights: position embeddings and patch kernels are resampled, names
    of the original repositories replaced.

    Raises:
        TaskError: timm cannot make anything of them.
    """
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state, ()
    scaled = (
        {"adapt_layer_scale": True} if isinstance(module, timm.models.VisionTransformer) else {}
    )
    try:
        converted: dict[str, Tensor] = convert(dict(state), module, **scaled)
    except Exception as error:  # written for weights that fit: anything can go wrong in it
        raise TaskError(
            f"the weights do not fit {type(module).__name__}, and timm cannot adapt them "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error
    notes = [
        f"{name} was resampled by timm from {tuple(state[name].shape)} to {tuple(tensor.shape)}"
        for name, tensor in converted.items()
        if name in state and tensor.shape != state[name].shape
    ]
    if set(converted) - set(state):
        notes.append("names of the weights were replaced by timm's: they came in another layout")
    return converted, tuple(notes)


def head_outputs(state: Mapping[str, Tensor], module: nn.Module) -> int | None:
    """Return how many outputs the classifier has whose weights are in a state dict.

    Args:
        state: tensors by timm's names, or by those of the original repositories.
        module: timm's model, of any number of outputs.

    Returns:
        None where no tensor has the name of the model's classifier.
    """
    named = getattr(module, "default_cfg", {}).get("classifier") or ()
    for name in (named,) if isinstance(named, str) else named:
        # Where timm has the classifier in a part of its own (head.fc), original weights have head alone.
        for place in (name, name.partition(".")[0]):
            weight = state.get(f"{place}.weight")
            if weight is not None and weight.ndim > 1:
                return len(weight)
    return None


def create_by_class(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model of one of the classes of ``timm.models``."""
    module: nn.Module = getattr(timm.models, name)(**settings)
    return module


def preprocessing(module: nn.Module) -> tuple[dict[str, Any], Any]:
    """Return timm's data config of a model, and the transform of its evaluation."""
    config: dict[str, Any] = resolve_model_data_config(module)
    return config, create_transform(**config, is_training=False)
