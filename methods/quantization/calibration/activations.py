"""Caches of the activations of all calibration images: on the device, in memory, or on disk.

The rule, for a cache of n bytes of which `COPIES` exist at once:

1. on a GPU if all copies take at most half of its free memory;
2. else in host memory if all copies fit `CACHED_SHARE` of the budget (``BENCH_CACHE_GB``, default 6 GB) and
   half of what is available;
3. else in a memory-mapped temporary file, which vanishes with the process. Its pages are dropped from
   memory after each use (`_drop_pages`): they are in the file.
"""

import logging
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.memory import GB, available, budget
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.structure import Output, Segment

logger = logging.getLogger(__name__)

COPIES = 4
"""Full-precision input, quantized input, target, and the next quantized input while it is made."""

FORWARD_BATCH = 64
"""Most images per pass when all are sent through a unit."""

FORWARD_BYTES = 48 * 10**6
"""Most bytes of input per pass: one image of a detector's first stage has what 60 of a classifier have."""

CACHED_SHARE = 0.75
"""Of `memory.budget`: what caches may take in memory. The rest is for the passes."""

_mappings: list[weakref.ref[mmap.mmap]] = []


def allocate(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return an uninitialised float32 tensor of ``shape`` where there is room for `COPIES` of it.

    Raises:
        MethodError: not even the temporary folder has room; says how much is needed.
    """
    need = 4 * math.prod(shape) * COPIES
    if device.type == "cuda" and need <= available(device) / 2:
        return torch.empty(*shape, device=device)
    if need <= min(CACHED_SHARE * budget(), available(torch.device("cpu")) / 2):
        return torch.empty(*shape)
    return _mapped(shape, need)


def _mapped(shape: Sequence[int], need: float) -> Tensor:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if need > free:
        raise MethodError(
            f"the activations of the calibration images take {need / GB:.1f} GB at this unit, more than "
            f"memory allows, and {folder} has only {free / GB:.1f} GB free; use fewer calibration images, "
            "a larger BENCH_CACHE_GB, or another TMPDIR"
        )
    logger.info("caches of %.1f GB go to memory-mapped files in %s", need / GB, folder)
    size = 4 * math.prod(shape)
    with tempfile.TemporaryFile(prefix="bench-cache-") as file:
        file.truncate(size)
        # A disk that fills is an error here, a crash in a mapping.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        mapping = mmap.mmap(file.fileno(), size)  # keeps the data until the tensor is gone
    _mappings.append(weakref.ref(mapping))
    return torch.frombuffer(mapping, dtype=torch.float32).view(*shape)


def _drop_pages() -> None:
    """Take the pages of mapped caches out of memory; what is read again comes from the file."""
    alive = [(ref, mapping) for ref in _mappings if (mapping := ref()) is not None]
    _mappings[:] = [ref for ref, _ in alive]
    for _, mapping in alive:
        if hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def batches(x: Tensor) -> list[slice]:
    """Return the parts in which all images ``x`` are sent through a unit."""
    size = max(1, min(FORWARD_BATCH, FORWARD_BYTES // (4 * x[0].numel())))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def send_through(run: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> Tensor:
    """Return ``run`` of all images ``x``, a batch at a time, in a cache of its own."""
    result = predictions(run, x, device)
    assert isinstance(result, Tensor)
    return result


@torch.no_grad()
def predictions(run: Callable[[Tensor], Output], x: Tensor, device: torch.device) -> Output:
    """`send_through` for what may give several tensors per batch; each gets a cache."""
    caches: list[Tensor] = []
    single = True
    for part in batches(x):
        output = run(x[part].to(device))
        single = isinstance(output, Tensor)
        tensors = (output,) if isinstance(output, Tensor) else output
        if not caches:
            caches = [allocate((len(x), *tensor.shape[1:]), device) for tensor in tensors]
        for cache, tensor in zip(caches, tensors, strict=True):
            cache[part] = tensor
        _drop_pages()
    return caches[0] if single else tuple(caches)


def take_output(cache: Output, chosen: Tensor, device: torch.device) -> Output:
    """Return the rows ``chosen`` of what `predictions` gave, on ``device``."""
    if isinstance(cache, Tensor):
        return take(cache, chosen, device)
    return tuple(take(part, chosen, device) for part in cache)


def take(cache: Tensor, chosen: Tensor, device: torch.device) -> Tensor:
    """Return the rows ``chosen`` of a cache, on ``device``."""
    rows = cache[chosen.to(cache.device)].to(device)
    _drop_pages()
    return rows


class _Stop(Exception):
    """Ends a pass once what it was for has been seen."""


def input_of(
    operation: WeightedOperation, segment: Segment, x: Tensor, device: torch.device
) -> Tensor:
    """Input of one operation inside a segment, for all images; images stay the first dimension."""

    def run(images: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])
            raise _Stop

        handle = operation.register_forward_pre_hook(stop)
        try:
            segment.run(images)
        except _Stop:
            pass
        finally:
            handle.remove()
        # Windows of Swin: [images * windows, N, C] -> [images, windows, N, C].
        return torch.unflatten(seen[0], 0, (len(images), -1))

    return send_through(run, x, device)
