"""Handwritten digits in colour: scikit-learn's 8 x 8 digits, rendered on clutter at 32 x 32.

The source digits are split once, by source digit, into a pool for training (and calibration) and a
pool for testing. Everything drawn is a function of a NumPy generator and a pool: the same seed gives
the same bytes. Only exactly rounded operations touch the pixels, so that the bytes agree between
machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIZE = 32

CLASSES = 10

CHUNK = 500

SPLIT_SEED = 7

TEST_FRACTION = 0.3

VALIDATION_FRACTION = 0.15

CLUTTER = 0.25
"""How hard the pictures of the benchmark are to read, between 0 (plain) and 1."""

FULL_COLOUR = 0.4
"""Clutter from which on colours are as strong as they get."""


@dataclass(frozen=True)
class Pool:
    """Source digits: ``images`` float32 [n, 8, 8] in 0..1, ``labels`` int64 [n], and the row
    ``indices`` int64 [n] of each in ``sklearn.datasets.load_digits()``."""

    images: Floats
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Pool:
        """The pool of the given rows (positions in this pool), in their order."""
        return Pool(self.images[rows], self.labels[rows], self.indices[rows])


@cache
def source_pools() -> tuple[Pool, Pool]:
    """The training pool and the testing pool: disjoint sets of source digits, same for everybody."""
    from sklearn.datasets import (
        load_digits,  # takes seconds, and rendering needs nothing else of it
    )

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)
    labels = data.target.astype(np.int64)
    everything = Pool(images, labels, np.arange(len(labels), dtype=np.int64))
    return split_pool(everything, TEST_FRACTION, SPLIT_SEED)


@cache
def training_pools() -> tuple[Pool, Pool]:
    """The training pool cut in two: what models are fitted on, and what they are selected on."""
    return split_pool(source_pools()[0], VALIDATION_FRACTION, SPLIT_SEED + 1)


def split_pool(pool: Pool, fraction: float, seed: int) -> tuple[Pool, Pool]:
    """Split every class at random; ``fraction`` (0..1) of it goes to the second pool returned."""
    rng = np.random.default_rng(seed)
    first: list[NDArray[np.int64]] = []
    second: list[NDArray[np.int64]] = []
    for label in range(CLASSES):
        rows = np.flatnonzero(pool.labels == label)
        rows = rows[np.argsort(rng.random(len(rows)), kind="stable")]
        cut = round(len(rows) * fraction)
        second.append(rows[:cut])
        first.append(rows[cut:])
    return pool.take(np.sort(np.concatenate(first))), pool.take(np.sort(np.concatenate(second)))


def render(
    pool: Pool, n: int, rng: np.random.Generator, clutter: float = CLUTTER
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw ``n`` pictures of digits of ``pool``.

    ``clutter`` scales everything that makes a picture hard: how far the digit is moved, turned,
    sheared and shrunk, and how strong stripes, blotches, other digits, bars and noise are. Below
    `FULL_COLOUR` the colours fade too, to a white digit on black at 0.

    Returns images uint8 [n, 32, 32, 3] (RGB) and labels int64 [n]; the classes are as balanced as
    ``n`` allows and come in random order.
    """
    order = np.argsort(rng.random(n), kind="stable")
    labels = (np.arange(n, dtype=np.int64) % CLASSES)[order]
    rows = _draw_rows(pool, labels, rng)
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, n, CHUNK):
        chunk = slice(start, min(start + CHUNK, n))
        images[chunk] = _render_chunk(pool, rows[chunk], rng, clutter)
    return images, labels


TEST_IMAGES = 2000

TEST_SEED = 20


@cache
def test_set() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The evaluation set: 2000 pictures of testing digits, the same for everybody."""
    return render(source_pools()[1], TEST_IMAGES, np.random.default_rng(TEST_SEED))


HOLDOUT_IMAGES = 2000


@cache
def holdout_set() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """2000 pictures of the training digits that no model was fitted to."""
    return render(training_pools()[1], HOLDOUT_IMAGES, np.random.default_rng([3, 0]))


def _draw_rows(
    pool: Pool, labels: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """One row of the pool for each label: int64 [n]."""
    by_class = np.argsort(pool.labels, kind="stable")
    counts = np.bincount(pool.labels, minlength=CLASSES)
    starts = np.cumsum(counts) - counts
    offsets = (rng.random(len(labels)) * counts[labels]).astype(np.int64)
    rows: NDArray[np.int64] = by_class[starts[labels] + offsets]
    return rows


def _render_chunk(
    pool: Pool, rows: NDArray[np.int64], rng: np.random.Generator, clutter: float
) -> NDArray[np.uint8]:
    """Pictures uint8 [n, 32, 32, 3] of the given rows of the pool, painted back to front."""
    n = len(rows)
    canvas = _background(n, rng, clutter)
    middle = canvas.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    for _ in range(2):
        fragment = _fragment(pool, n, rng)
        canvas = _paint(canvas, fragment, _colour(n, rng), 0.3 * clutter, clutter, rng)
    colour = _contrasting(middle, rng)
    strength = np.float32(min(1.0, clutter / FULL_COLOUR))
    ink = _gradient(1 + strength * (colour - 1), _spread(n, 0.12 * clutter, rng), rng)
    canvas = _paint(canvas, _main_digit(pool, rows, rng, clutter), ink, 0.8, 1.0, rng)
    canvas = _paint(canvas, _bars(n, rng, clutter), _colour(n, rng), 0.6, 1.0, rng)
    noise = _uniform(rng, (n, SIZE, SIZE, 3), -1.0, 1.0)
    noise *= _uniform(rng, (n, 1, 1, 1), 0.0, 0.1 * clutter)
    pictures: NDArray[np.uint8] = np.rint(
        np.clip(canvas + noise, 0.0, 1.0) * np.float32(255.0)
    ).astype(np.uint8)
    return pictures


def clutter_background(size: int, rng: np.random.Generator, clutter: float) -> Floats:
    """One cluttered background of another size: float32 [size, size, 3], not clipped to 0..1."""
    small = _background(1, rng, clutter).transpose(0, 3, 1, 2).reshape(3, SIZE, SIZE)
    line = ((np.arange(size) + 0.5) * (SIZE / size) - 0.5).clip(0, SIZE - 1).astype(np.float32)
    row = np.broadcast_to(line[None, :, None], (3, size, size))
    column = np.broadcast_to(line[None, None, :], (3, size, size))
    return _bilinear(small, row, column).transpose(1, 2, 0)


def _main_digit(
    pool: Pool, rows: NDArray[np.int64], rng: np.random.Generator, clutter: float
) -> Floats:
    """The digit that is asked for: large, near the middle."""
    n = len(rows)
    scale = _uniform(rng, (n,), 1.0 - 0.4 * clutter, 1.0)
    shift = _uniform(rng, (n, 2), -0.2 * clutter, 0.2 * clutter)
    return _warp(pool.images[rows], scale, shift, 25.0 * clutter, 0.25 * clutter, rng)


def _fragment(pool: Pool, n: int, rng: np.random.Generator) -> Floats:
    """A smaller digit near the border, of which a part is cut off."""
    rows = (rng.random(n) * len(pool.labels)).astype(np.int64)
    angle = rng.random(n) * (2 * np.pi)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    shift = direction * _uniform(rng, (n, 1), 0.75, 1.15)
    shape = _warp(pool.images[rows], _uniform(rng, (n,), 0.35, 0.6), shift, 180.0, 0.25, rng)
    part: Floats = shape * (_plane(n, rng) > _uniform(rng, (n, 1, 1), -0.9, 0.3))
    return part


def _bars(n: int, rng: np.random.Generator, clutter: float) -> Floats:
    """A thin bar across the picture, in two of five pictures at full clutter."""
    distance = np.abs(_plane(n, rng) - _uniform(rng, (n, 1, 1), -0.6, 0.6))
    width = _uniform(rng, (n, 1, 1), 0.03, 0.11) * (rng.random((n, 1, 1)) < 0.4 * clutter)
    bars: Floats = (distance < width).astype(np.float32)
    return bars


def _warp(
    digits: Floats,
    scale: Floats,
    shift: Floats,
    degrees: float,
    most_shear: float,
    rng: np.random.Generator,
) -> Floats:
    """Digits [n, 8, 8] scaled, turned (at most ``degrees``), sheared and moved: [n, 32, 32]."""
    n = len(digits)
    turn = (rng.random(n) * 2 - 1) * np.deg2rad(degrees)
    cos, sin = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
    shear = _uniform(rng, (n,), -most_shear, most_shear)
    stretch = _uniform(rng, (n,), 0.85, 1.18)
    x, y = _grid()
    x = x - shift[:, :1, None]
    y = y - shift[:, 1:, None]
    across = (_each(cos) * x + _each(sin) * y) / _each(scale)
    down = (_each(cos) * y - _each(sin) * x) / _each(scale)
    across = (across + _each(shear) * down) * _each(stretch)
    row, column = (axis.astype(np.float32) * 4 + np.float32(3.5) for axis in (down, across))
    values = _bilinear(digits, row, column) - np.float32(0.2)
    ink: Floats = np.clip(values * _uniform(rng, (n, 1, 1), 1.3, 2.6), 0.0, 1.0)
    return ink


def _bilinear(sources: Floats, row: Floats, column: Floats) -> Floats:
    """Values of ``sources`` [n, h, w] at fractional positions [n, 32, 32]; zero outside."""
    padded = np.pad(sources, ((0, 0), (1, 2), (1, 2)))
    n, height, width = padded.shape
    row = np.clip(row + 1, 0, height - 2)
    column = np.clip(column + 1, 0, width - 2)
    top, left = row.astype(np.int64), column.astype(np.int64)
    down, right = row - top, column - left
    flat = padded.reshape(-1)
    at = (np.arange(n)[:, None, None] * height + top) * width + left
    upper = flat[at] * (1 - right) + flat[at + 1] * right
    lower = flat[at + width] * (1 - right) + flat[at + width + 1] * right
    values: Floats = upper * (1 - down) + lower * down
    return values


def _background(n: int, rng: np.random.Generator, clutter: float) -> Floats:
    """A colour gradient with stripes and soft blotches on it."""
    strength = np.float32(min(1.0, clutter / FULL_COLOUR))
    colour = strength * _uniform(rng, (n, 3), 0.1, 0.9)
    base = _gradient(colour, _spread(n, 0.25 * clutter, rng), rng)
    phase = _plane(n, rng) * _uniform(rng, (n, 1, 1), 1.0, 5.0) + _uniform(rng, (n, 1, 1), 0, 1)
    wave = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1
    stripes = wave[..., None] * _spread(n, 0.2 * clutter, rng)
    blotches = _blotches(n, rng) * _uniform(rng, (n, 1, 1, 1), 0.0, 0.3 * clutter)
    canvas: Floats = base + stripes + blotches
    return canvas


def _blotches(n: int, rng: np.random.Generator) -> Floats:
    """Soft noise in -1..1 made from 7 x 7 random cells in each channel."""
    cells = _uniform(rng, (n * 3, 7, 7), -1.0, 1.0)
    x, y = _grid()
    shape = (n * 3, SIZE, SIZE)
    row = np.broadcast_to(((y + 1) * 3).astype(np.float32), shape)
    column = np.broadcast_to(((x + 1) * 3).astype(np.float32), shape)
    return _bilinear(cells, row, column).reshape(n, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def _gradient(middle: Floats, spread: Floats, rng: np.random.Generator) -> Floats:
    """From ``middle - spread`` to ``middle + spread`` in a random direction: [n, 32, 32, 3]."""
    return middle[:, None, None, :] + _plane(len(middle), rng)[..., None] * spread


def _colour(n: int, rng: np.random.Generator) -> Floats:
    return np.broadcast_to(_uniform(rng, (n, 1, 1, 3), 0.0, 1.0), (n, SIZE, SIZE, 3))


def _contrasting(middle: Floats, rng: np.random.Generator) -> Floats:
    """Of three random colours the one farthest from ``middle``: [n, 3]."""
    colours = _uniform(rng, (len(middle), 3, 3), 0.0, 1.0)
    gap = colours - middle[:, None]
    distance = gap[..., 0] ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2
    farthest: Floats = colours[np.arange(len(middle)), distance.argmax(axis=1)]
    return farthest


def _paint(
    canvas: Floats, shape: Floats, paint: Floats, low: float, high: float, rng: np.random.Generator
) -> Floats:
    """Lay ``paint`` over the canvas where ``shape`` is, with an opacity between low and high."""
    cover = (shape * _uniform(rng, (len(canvas), 1, 1), low, high))[..., None]
    return canvas * (1 - cover) + paint * cover


@cache
def _grid() -> tuple[Floats, Floats]:
    """Pixel centres x and y in -1..1, each [1, 32, 32]."""
    line = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1).astype(np.float32)
    return line[None, None, :].repeat(SIZE, axis=1), line[None, :, None].repeat(SIZE, axis=2)


def _plane(n: int, rng: np.random.Generator) -> Floats:
    """The signed distance from a line through the middle, at a random angle: [n, 32, 32]."""
    angle = rng.random(n) * (2 * np.pi)
    x, y = _grid()
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return _each(cos) * x + _each(sin) * y


def _each(values: Floats) -> Floats:
    return values[:, None, None]


def _spread(n: int, most: float, rng: np.random.Generator) -> Floats:
    return _uniform(rng, (n, 1, 1, 3), -most, most)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Floats:
    values = rng.random(shape, dtype=np.float32)
    return values * np.float32(high - low) + np.float32(low)
