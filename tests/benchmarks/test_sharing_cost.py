"""What the runs of a sweep save by sharing: gradients, and decoded images."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from vit_ptq_bench.bench.execution.cache import CacheFolder
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss
from vit_ptq_bench.methods.quantization.calibration.recording import record_operations
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.tasks.classification.image_cache import CachedImages
from vit_ptq_bench.tasks.classification.image_files import ImageFiles

BUDGET = 4 * 10**9
PHOTOS = 32


@pytest.fixture
def cache(tmp_path):
    return CacheFolder(tmp_path / "cache", BUDGET, lambda: 0.0)


def _compare(benchmark, ratio, work):
    """Time ``work`` as the first run of a sweep does it and as a later one does."""
    start = time.process_time()
    work()
    made = time.process_time() - start
    benchmark.pedantic(work, rounds=3)
    found = ratio(benchmark)
    unit = benchmark.extra_info["forward_seconds"]
    benchmark.extra_info["made"] = made / unit
    print(f"made {made / unit:.2f} F, found {found:.2f} F")
    assert benchmark.stats.stats.min < made


def test_gradients_of_all_operations(benchmark, ratio, vit, images, cache):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    calibration = Calibration([images], 0, cache)

    def record():
        for _ in record_operations(model, calibration, fisher_loss, 4, 8):
            pass

    _compare(benchmark, ratio, record)


def test_decoded_photos(benchmark, ratio, vit, cache, tmp_path):
    generator = np.random.default_rng(0)
    samples = []
    for i in range(PHOTOS):
        small = Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8))
        path = tmp_path / f"{i}.jpg"
        small.resize((500, 400), Image.Resampling.BICUBIC).save(path, quality=90)
        samples.append((path, 0))
    config = resolve_model_data_config(vit)
    files = ImageFiles(samples, create_transform(**config, is_training=False))

    def read():
        batches = list(CachedImages(files, 16, 0, config, cache))
        assert torch.cat([batch for batch, _ in batches]).shape == (PHOTOS, 3, 224, 224)

    _compare(benchmark, ratio, read)
