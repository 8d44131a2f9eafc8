"""A short probe: the speed of a model in full precision on this machine."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.tasks import TaskOptions

WARM_UP, TIMED = 2, 16
"""Images: the first ones find caches and allocators empty."""


def images_per_second(
    name: str, model: str, options: TaskOptions, device: str, threads: int
) -> float:
    """Return how many images per second a model judges, reading them included, as a run does.

    Args:
        name: of the task.
        model: of the task, with its weights.
        options: of the task.
        device: torch's name.
        threads: of torch.

    Raises:
        BenchError, TaskError: the model or the data cannot be read.
        RuntimeError: the device cannot run it, for example for want of memory.
    """
    torch.set_num_threads(threads)
    seconds = 0.0
    for images in (WARM_UP, TIMED):
        task = registry.make_task(name, replace(options, limit=images))
        task.data_id()
        loaded = task.load_model(model)
        module = loaded.module.to(device).eval()
        begun = time.perf_counter()
        result = task.evaluate(module, loaded, torch.device(device))
        seconds = (time.perf_counter() - begun) / result.n
    return 1 / seconds
