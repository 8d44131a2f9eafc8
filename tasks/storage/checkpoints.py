"""Reading weights from files, without running anything that a file contains."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.identity import require_file

CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Keys under which training scripts put the state dict."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a state dict saved by torch, as float32.

    Raises:
        TaskError: missing, truncated, of another kind, or a pickle that wants to run code.
    """
    require_file(path)
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in CONTAINERS:
        if isinstance(raw, dict) and isinstance(raw.get(key), dict):
            raw = raw[key]
    if not isinstance(raw, dict) or not raw or not all(isinstance(v, Tensor) for v in raw.values()):
        raise TaskError(f"{path}: holds no state dict (names of parameters -> tensors)")
    return {name: v.float() if v.is_floating_point() else v for name, v in raw.items()}


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TaskError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, fetch it again"
        ) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TaskError(
            f"{path}: the file holds more than tensors, and loading it would run code from it; "
            f"if you trust it, convert it: bench convert checkpoint {path} "
            f"{path.with_suffix('.safetensors').name} --trust"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise TaskError(
            f"{path}: not a readable checkpoint ({error}); it may be truncated"
        ) from error


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load every tensor into ``module``.

    Raises:
        TaskError: missing, unexpected or mis-shaped tensors; the first few are named.
    """
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if own[name].shape != state[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise TaskError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state)
