"""The cards of the bundled models: figure in full precision and the command that trained them."""

import json
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


CARDS = WEIGHTS / "models.json"


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
    CARDS.write_text(json.dumps(cards, indent=2, sort_keys=True) + "\n", encoding="utf-8")
