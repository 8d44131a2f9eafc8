"""Loading a checkpoint file into a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vit_ptq_bench.tasks.storage.checkpoints import read_checkpoint
from vit_ptq_bench.tasks.storage.state_dicts import (
    Adapt,
    best_state_dict,
    fitted,
    load_strictly,
    misfits,
)


@dataclass(frozen=True)
class Weights:
    """What was loaded into a model.

    Attributes:
        identity: ``sha256:...`` of the very bytes that the weights were made from.
        notes: what has to be said of it, a sentence each.
    """

    identity: str
    notes: tuple[str, ...] = ()


def load_weights(module: nn.Module, path: Path, adapt: Adapt | None = None) -> Weights:
    """Load a checkpoint, in any of the forms that training scripts write, into ``module``.

    Args:
        module: takes every tensor; the checkpoint must have them all.
        path: safetensors, or what `torch.save` wrote.
        adapt: asked only where the weights do not fit as they are.

    Raises:
        TaskError: the file cannot be read, holds no weights, several models, or weights that do not fit or
            are not finite.
    """
    checkpoint = read_checkpoint(path)
    state, notes = best_state_dict(checkpoint.data, module.state_dict().keys(), str(path))
    weights = fitted(state, module)
    if adapt is not None and misfits(module, weights):
        adapted, more = adapt(dict(state), module)
        weights, notes = fitted(adapted, module), (*notes, *more)
    load_strictly(module, weights, str(path))
    return Weights(checkpoint.identity, notes)
