"""What the performance tests share: a real architecture, and F, the unit that every cost is given in.

F is the time of one full-precision forward pass over the calibration images, in this process, on one
thread: machines differ and are noisy, ratios taken in one run differ less. Times are processor seconds, not
those of a clock on the wall: what else runs on the machine takes its share of the one and not of the other
(tox gives pytest-benchmark the same timer).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from tests.benchmarks.bounds import note_ratio
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.tasks.classification.image_files import ImageFiles
from vit_ptq_bench.tasks.classification.image_listing import is_image
from vit_ptq_bench.tasks.storage.weights import load_weights

MODEL = "vit_tiny_patch16_224"
IMAGES = 32
THREADS = 1


class Ratio(Protocol):
    """See `ratio`."""

    def __call__(
        self, benchmark: BenchmarkFixture, target: float | None = None, missed: float | None = None
    ) -> float:
        """Return the ratio of a finished benchmark, held to ``target``; see `bounds.note_ratio`."""


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    """One thread, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """ViT-Tiny, with random weights unless ``BENCH_PERF_CHECKPOINT`` names a file of real ones.

    Only searches that look at gradients cost something else then: a trained model's lie on few tokens.
    """
    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False).eval()
    if checkpoint := os.environ.get("BENCH_PERF_CHECKPOINT"):
        load_weights(model, Path(checkpoint))
    return model


@pytest.fixture(scope="session")
def images(vit: nn.Module) -> Tensor:
    """Noise, or pictures from the folder ``BENCH_PERF_IMAGES`` (searched through, evenly drawn)."""
    if folder := os.environ.get("BENCH_PERF_IMAGES"):
        paths = sorted(path for path in Path(folder).rglob("*") if is_image(path))
        chosen = [(path, 0) for path in paths[:: len(paths) // IMAGES][:IMAGES]]
        config = resolve_model_data_config(vit)
        files = ImageFiles(chosen, create_transform(**config, is_training=False))
        return torch.stack([files[i][0] for i in range(IMAGES)])
    return torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calibration(images: Tensor) -> Calibration:
    return Calibration([images], seed=0)


@pytest.fixture(scope="session")
def forward_seconds(vit: nn.Module, images: Tensor) -> Callable[[], float]:
    """Measures F anew: what else runs on the machine changes within minutes."""

    @torch.inference_mode()
    def measure() -> float:
        seconds = []
        for _ in range(4):
            start = time.process_time()
            vit(images)
            seconds.append(time.process_time() - start)
        return min(seconds)

    measure()
    return measure


@pytest.fixture
def ratio(forward_seconds: Callable[[], float], request: pytest.FixtureRequest) -> Ratio:
    """Gives a finished benchmark's ratio to F, notes it in the JSON file, and fails above its limit."""

    def note(
        benchmark: BenchmarkFixture, target: float | None = None, missed: float | None = None
    ) -> float:
        return note_ratio(benchmark, request.node.name, forward_seconds(), target, missed)

    return note
