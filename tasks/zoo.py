"""The bundled models: small members of the families of the field, made for the bundled digits.

Architectures are timm's, twelve blocks deep; the weights are half-precision safetensors beside this
file, made by ``python -m tasks.train_digits``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tasks.errors import TaskError

WEIGHTS = Path(__file__).parent / "weights"
CARDS = WEIGHTS / "models.json"
CLASSES = 10
IMAGE_SIZE = 32
MEAN = STD = 0.5


def _vit_mini() -> nn.Module:
    return VisionTransformer(
        img_size=IMAGE_SIZE, patch_size=4, embed_dim=96, depth=12, num_heads=3, num_classes=CLASSES
    )


def _deit_mini() -> nn.Module:
    return VisionTransformerDistilled(
        img_size=IMAGE_SIZE, patch_size=4, embed_dim=96, depth=12, num_heads=3, num_classes=CLASSES
    )


def _swin_mini() -> nn.Module:
    return SwinTransformer(
        img_size=IMAGE_SIZE,
        patch_size=2,
        embed_dim=32,
        depths=(2, 2, 6, 2),
        num_heads=(2, 4, 8, 16),
        window_size=4,
        num_classes=CLASSES,
        drop_path_rate=0.0,
    )


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "vit_mini": _vit_mini,
    "deit_mini": _deit_mini,
    "swin_mini": _swin_mini,
}


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


def build_architecture(name: str) -> nn.Module:
    """Return an untrained bundled model in eval mode.

    Raises:
        TaskError: no bundled model has that name.
    """
    if name not in ARCHITECTURES:
        raise TaskError(f"no bundled model {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]().eval()


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
