"""Cut the bundled pictures: ``python -m vit_ptq_bench.tasks.training.fashion_slices ROOT``.

ROOT is a folder as torchvision's ``FashionMNIST`` has it (``ROOT/FashionMNIST/raw``); with ``--download`` it
is fetched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import FashionMNIST

from vit_ptq_bench.tasks.classification.fashion_pictures import (
    CLASSES,
    SLICE_SIZES,
    SLICES,
    Pictures,
    as_pictures,
)


def cut(root: Path, download: bool) -> dict[str, NDArray[np.uint8]]:
    """Return images uint8 [n, 28, 28] and labels uint8 [n] of every slice, by their names in the file."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    for name, (images, labels) in _slices(root, download).items():
        arrays |= {f"{name}_images": images, f"{name}_labels": labels.astype(np.uint8)}
    return arrays


def fitting_pictures(root: Path) -> Pictures:
    """Return what bundled models are trained on: the training set without the slice ``holdout``."""
    images, labels = _part(root, train=True)
    rest = np.setdiff1d(np.arange(len(labels)), _rows(labels, SLICE_SIZES["holdout"], last=True))
    return Pictures(as_pictures(images[rest]), labels[rest])


def _slices(root: Path, download: bool) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    fit, test = _part(root, train=True, download=download), _part(root, train=False)
    return {
        "test": _taken(*test, _rows(test[1], SLICE_SIZES["test"])),
        "training": _taken(*fit, _rows(fit[1], SLICE_SIZES["training"])),
        "holdout": _taken(*fit, _rows(fit[1], SLICE_SIZES["holdout"], last=True)),
    }


def _part(
    root: Path, *, train: bool, download: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = FashionMNIST(str(root), train=train, download=download)
    return data.data.numpy(), data.targets.numpy()


def _rows(labels: NDArray[np.int64], n: int, *, last: bool = False) -> NDArray[np.int64]:
    """The first, or last, ``n`` rows that have as many of every class."""
    each = n // CLASSES
    chosen = slice(-each, None) if last else slice(each)
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[chosen] for k in range(CLASSES)]))


def _taken(
    images: NDArray[np.uint8], labels: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return images[rows], labels[rows]


def main(arguments: list[str] | None = None) -> None:
    """Write the file that comes with the package."""
    parser = argparse.ArgumentParser(description="Cut the bundled pictures out of Fashion-MNIST.")
    parser.add_argument("root", type=Path, help="folder of torchvision's FashionMNIST")
    parser.add_argument("--download", action="store_true", help="fetch what is not there")
    options = parser.parse_args(arguments)
    SLICES.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {**cut(options.root, options.download)}
    np.savez_compressed(SLICES, **arrays)
    print(f"{SLICES}: {SLICES.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
