"""Loading a checkpoint file into a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vit_ptq_bench.tasks.storage.checkpoints import Checkpoint, read_checkpoint
from vit_ptq_bench.tasks.storage.state_dicts import (
    Adapt,
    State,
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


def load_weights(
    module: nn.Module, source: Path | Checkpoint, adapt: Adapt | None = None
) -> Weights:
    """Load a checkpoint, in any of the forms that training scripts write, into ``module``.

    Args:
        module: takes every tensor; the checkpoint must have them all.
        source: safetensors, or what `torch.save` wrote; a file, or its content where that was read before.
        adapt: asked only where the weights do not fit as they are.

    Raises:
        TaskError: the file cannot be read, holds no weights, several models, or weights that do not fit or
            are not finite.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    path = checkpoint.path
    state, notes = best_state_dict(checkpoint.data, module.state_dict().keys(), str(path))
    weights = fitted(state, module)
    if adapt is not None and misfits(module, weights):
        adapted, more = adapt(dict(state), module)
        weights, notes = fitted(adapted, module), (*notes, *more)
    load_strictly(module, weights, str(path))
    return Weights(checkpoint.identity, notes)


def weights_in(checkpoint: Checkpoint, module: nn.Module) -> State:
    """Return the tensors that `load_weights` would take for ``module``, as the checkpoint has them.

    Raises:
        TaskError: it holds no weights, or several models.
    """
    return best_state_dict(checkpoint.data, module.state_dict().keys(), str(checkpoint.path))[0]
