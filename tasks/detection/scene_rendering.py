"""Scenes of handwritten digits in COCO's form: digits on cards of three size bands, overlapping, on clutter.

A card is a rounded rectangle with a digit on it, so that masks are solid and a card that lies on another
hides part of it. Everything drawn is a function of a NumPy generator and a pool of source digits (see
`digits`): the same seed gives the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from vit_ptq_bench.tasks.detection.digits import (
    CLASSES,
    Floats,
    Pool,
    clutter_background,
)

SIZE = 160
"""Width and height of a scene: the least in which a card can be large by COCO's measure (area over 96^2)."""

SIDES = {"small": (14, 28), "medium": (38, 84), "large": (104, 132)}
"""Shortest and longest side of a card in pixels; its area is small, medium or large by COCO's measure."""

SHARES = (0.45, 0.4, 0.15)

MOST_CARDS = 6

LEAST_VISIBLE = 0.5

CROWD_SHARE = 0.08
"""Share of scenes with a crowd: a heap of tiny cards with one digit, annotated as one region."""

TRIES = 20

CLUTTER = 0.5


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        label: the digit, 0 to 9.
        mask: what is visible of it, bool [SIZE, SIZE].
        crowd: whether it is a region of several digits that nobody tells apart.
    """

    label: int
    mask: NDArray[np.bool_]
    crowd: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Smallest box around the mask: (x, y, width, height) in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return (
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        )


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 [SIZE, SIZE, 3] (RGB), and what is on it, the lowest card first."""

    picture: NDArray[np.uint8]
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class _Card:
    row: int
    cover: NDArray[np.bool_]
    ink: Floats


def compose(pool: Pool, rng: np.random.Generator) -> Scene:
    """Draw one scene with digits of ``pool``: two to six cards, now and then a crowd."""
    canvas = clutter_background(SIZE, rng, CLUTTER)
    cards = _layout(pool, rng)
    for card in cards:
        canvas = _lay(canvas, card, rng)
    covers = [card.cover for card in cards]
    instances = [
        Instance(int(pool.labels[card.row]), _visible(covers, i)) for i, card in enumerate(cards)
    ]
    if rng.random() < CROWD_SHARE:
        canvas, crowd = _heap(canvas, pool, rng)
        instances = [Instance(i.label, i.mask & ~crowd.mask) for i in instances]
        # What the heap hides is no longer there to be found.
        instances = [i for i in instances if i.mask.any()] + [crowd]
    picture = np.rint(np.clip(canvas, 0, 1) * np.float32(255)).astype(np.uint8)
    return Scene(picture, tuple(instances))


def _layout(pool: Pool, rng: np.random.Generator) -> list[_Card]:
    """Cards of which each stays visible by half at least, large ones below."""
    wanted = 2 + int(rng.random() * (MOST_CARDS - 1))
    bands = np.searchsorted(np.cumsum(SHARES), rng.random(wanted), side="right")
    cards: list[_Card] = []
    for band in np.sort(bands)[::-1]:
        low, high = list(SIDES.values())[int(band)]
        for _ in range(TRIES):
            card = _card(pool, low, high, rng)
            covers = [other.cover for other in cards] + [card.cover]
            shares = [_visible(covers, i).sum() / c.sum() for i, c in enumerate(covers)]
            if min(shares) >= LEAST_VISIBLE:
                cards.append(card)
                break
    return cards


def _visible(covers: list[NDArray[np.bool_]], index: int) -> NDArray[np.bool_]:
    seen = covers[index].copy()
    for above in covers[index + 1 :]:
        seen &= ~above
    return seen


def _card(pool: Pool, low: int, high: int, rng: np.random.Generator) -> _Card:
    """A card with sides between ``low`` and ``high``, wholly inside the scene."""
    width, height = low + rng.random(2) * (high - low)
    x = width / 2 + rng.random() * (SIZE - width)
    y = height / 2 + rng.random() * (SIZE - height)
    line = np.arange(SIZE) + 0.5
    across = ((line - x) / (width / 2)).astype(np.float32)[None, :].repeat(SIZE, axis=0)
    down = ((line - y) / (height / 2)).astype(np.float32)[:, None].repeat(SIZE, axis=1)
    squares = across * across, down * down
    cover = squares[0] * squares[0] + squares[1] * squares[1] <= 1
    row = int(rng.random() * len(pool.labels))
    turn = np.deg2rad((rng.random() * 2 - 1) * 15)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    ink = _sample(pool.images[row], cos * down - sin * across, cos * across + sin * down)
    return _Card(row, cover, np.clip((ink - np.float32(0.2)) * np.float32(2), 0, 1))


def _sample(digit: Floats, down: Floats, across: Floats) -> Floats:
    """An 8 x 8 digit at positions in -1..1 of its card (it fills 80 % of it); zero outside."""
    padded = np.pad(digit, 1)
    row = np.clip(down * np.float32(5) + np.float32(4.5), 0, 8.999)
    column = np.clip(across * np.float32(5) + np.float32(4.5), 0, 8.999)
    top, left = row.astype(np.int64), column.astype(np.int64)
    below, right = row - top, column - left
    padded = np.pad(padded, (0, 1))
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    values: Floats = upper * (1 - below) + lower * below
    return values


def _lay(canvas: Floats, card: _Card, rng: np.random.Generator) -> Floats:
    """Put a card of one colour with a digit of another on the canvas."""
    paper = rng.random(3, dtype=np.float32)
    colours = rng.random((4, 3), dtype=np.float32)
    ink = colours[np.square(colours - paper).sum(1).argmax()]
    face = paper + card.ink[..., None] * (ink - paper)
    return np.where(card.cover[..., None], face, canvas)


def _heap(canvas: Floats, pool: Pool, rng: np.random.Generator) -> tuple[Floats, Instance]:
    """A heap of tiny cards with digits of one class, as one crowd."""
    first = int(rng.random() * len(pool.labels))
    same = pool.take(np.flatnonzero(pool.labels == pool.labels[first]))
    corner = (rng.random(2) * (SIZE - 40)).astype(np.int64)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    for _ in range(6):
        card = _card(same, 9, 13, rng)
        rows, columns = np.flatnonzero(card.cover.any(1)), np.flatnonzero(card.cover.any(0))
        target = corner + (rng.random(2) * 25).astype(np.int64)
        move = tuple(int(t - s[0]) for t, s in zip(target, (rows, columns), strict=True))
        moved = _Card(card.row, np.roll(card.cover, move, (0, 1)), np.roll(card.ink, move, (0, 1)))
        canvas = _lay(canvas, moved, rng)
        mask |= moved.cover
    return canvas, Instance(int(pool.labels[first]), mask, crowd=True)


def to_coco(scenes: list[Scene], names: list[str]) -> dict[str, Any]:
    """Return COCO's annotation object; masks as compressed RLE.

    Args:
        scenes: the scenes.
        names: their file names.
    """
    images = [
        {"id": number, "file_name": name, "width": SIZE, "height": SIZE}
        for number, name in enumerate(names, start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, start=1):
        for instance in scene.instances:
            annotations.append(_annotation(len(annotations) + 1, number, instance))
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(number: int, image: int, instance: Instance) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image,
        "category_id": instance.label + 1,
        "bbox": list(instance.box),
        "area": int(instance.mask.sum()),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
        "iscrowd": int(instance.crowd),
    }


def write_scenes(folder: Path, pool: Pool, n: int, seed: int) -> Path:
    """Write ``n`` scenes as PNG files and their ``annotations.json``; return the path of the latter."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [compose(pool, rng) for _ in range(n)]
    names = [f"{number:06}.png" for number in range(1, n + 1)]
    for scene, name in zip(scenes, names, strict=True):
        Image.fromarray(scene.picture).save(folder / name)
    path = folder / "annotations.json"
    path.write_text(json.dumps(to_coco(scenes, names)))
    return path
