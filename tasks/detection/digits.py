"""Parts of the bundled scenes: scikit-learn's handwritten 8 x 8 digits, and coloured clutter behind them.

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
"""Width and height at which clutter is drawn before it is scaled."""

CLASSES = 10

SPLIT_SEED = 7

TEST_FRACTION = 0.3

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


def clutter_background(size: int, rng: np.random.Generator, clutter: float) -> Floats:
    """Return one cluttered background [size, size, 3], not clipped to 0..1.

    ``clutter``, 0 to 1, says how strong its stripes and blotches are; below `FULL_COLOUR` the colours fade.
    """
    small = _background(1, rng, clutter).transpose(0, 3, 1, 2).reshape(3, SIZE, SIZE)
    line = ((np.arange(size) + 0.5) * (SIZE / size) - 0.5).clip(0, SIZE - 1).astype(np.float32)
    row = np.broadcast_to(line[None, :, None], (3, size, size))
    column = np.broadcast_to(line[None, None, :], (3, size, size))
    return _bilinear(small, row, column).transpose(1, 2, 0)


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
    return cos[:, None, None] * x + sin[:, None, None] * y


def _spread(n: int, most: float, rng: np.random.Generator) -> Floats:
    return _uniform(rng, (n, 1, 1, 3), -most, most)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Floats:
    values = rng.random(shape, dtype=np.float32)
    return values * np.float32(high - low) + np.float32(low)
