"""The bundled models: their weights, and cards with the full-precision figure and the training command."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.task import LoadedModel

if TYPE_CHECKING:
    from torch import nn

    from vit_ptq_bench.tasks.storage.weights import Weights

WEIGHTS = Path(__file__).parents[1] / "weights"

CARDS = WEIGHTS / "models.json"

LICENCE = "Apache-2.0"
"""Of the bundled weights."""


LICENCE_KEYS = ("license", "licence")
"""Entries of a safetensors file's metadata by which its owner states the licence of the weights."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a bundled model.

    Attributes:
        name: its name.
        figure: its metric in full precision on the bundled evaluation images, in percent.
        command: the command that trained it.
        metric: ``top1``, or ``box_ap`` of a detector.
    """

    name: str
    figure: float
    command: str
    metric: str = "top1"


def weights_path(name: str) -> Path:
    """Return where the weights of a bundled model lie."""
    return WEIGHTS / f"{name}.safetensors"


def bundled_weights(name: str, options: TaskOptions) -> Path:
    """Return the file with a bundled model's weights: the user's checkpoint, or its own."""
    return options.weights_of(name) or weights_path(name)


def stated_licence(checkpoint: Path | None, published: str | None = None) -> str | None:
    """Return the licence that a checkpoint of the user's own states in its metadata; None: it states none.

    Args:
        checkpoint: safetensors, or any other file, which has no such metadata; None: there is none.
        published: the licence of the weights that are taken then.
    """
    if checkpoint is None:
        return published
    try:
        with safe_open(checkpoint, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):  # a state dict of torch
        return None
    return next((metadata[key] for key in LICENCE_KEYS if metadata.get(key)), None)


def bundled_model(
    name: str, module: nn.Module, options: TaskOptions, weights: Weights
) -> LoadedModel:
    """Return a bundled model, ``weights`` in it, with its card's figure as the reference.

    The figure is that of the bundled weights on the evaluation images: there is none with a checkpoint, nor
    with ``holdout``.
    """
    own = options.weights_of(name) is None and not options.holdout
    card = read_card(name) if own else None
    return LoadedModel(
        name,
        module,
        card.figure if card else None,
        source="tasks/weights/models.json",
        weights=weights.identity,
        notes=weights.notes,
    )


def read_card(name: str) -> ModelCard | None:
    """Return the card of a bundled model, or None if it has none yet."""
    if not CARDS.is_file():
        return None
    entry = json.loads(CARDS.read_text(encoding="utf-8")).get(name)
    if entry is None:
        return None
    metric = next(key for key in entry if key != "command")
    return ModelCard(name, entry[metric], entry["command"], metric)


def write_card(card: ModelCard) -> None:
    """Add or replace a card."""
    cards = json.loads(CARDS.read_text(encoding="utf-8")) if CARDS.is_file() else {}
    cards[card.name] = {card.metric: card.figure, "command": card.command}
    fresh = CARDS.with_name(f".{CARDS.name}.{os.getpid()}")
    fresh.write_text(json.dumps(cards, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(CARDS)
