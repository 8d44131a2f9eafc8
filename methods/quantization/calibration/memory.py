"""The memory that calibration may take and that there is; what cannot fit is refused before it starts."""

import ctypes
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.values import number, out_of_bounds, shown


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory of the host or of a device does not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        # the CPU allocator of torch raises a plain RuntimeError
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


RANGE_IMAGES, LEAST_RANGE_IMAGES = 128, 4
"""Most and fewest images that a reconstruction takes ranges from, and the scales of attention maps.

A pass over more takes many gigabytes, and the steps are trained on all images afterwards.
"""

RANGE_BYTES = 4 * 10**8
"""Of the largest activation of those images, where they are more than the fewest: a detector's image of 800 x
1216 pixels shows as many tokens as 300 of a classifier, and takes as much."""

AT_ONCE = 5
"""Copies of the largest activation that exist at once in a pass: what it is made from, itself, sorted or
quantized, and what a rule compares."""

AMPLE = 80
"""Times the images' bytes that no pass of a known family needs."""


def require_room(model: QuantizedModel, calibration: Calibration) -> None:
    """Refuse a pass over all images that cannot fit, before it starts.

    What it takes is known from one image, which is looked at only where it could be too much.
    """
    image = calibration.batches[0][:1]
    if calibration.n_images * image.numel() * 4 * AMPLE < available(image.device):
        return
    need = calibration.n_images * (AT_ONCE * largest_activation(model, image) + 4 * image.numel())
    require(need, image.device, f"one pass over {calibration.n_images} calibration images")


@torch.no_grad()
def largest_activation(model: QuantizedModel, image: Tensor) -> int:
    """Bytes of the largest tensor that a quantizer sees of one image."""
    largest = 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].numel() * inputs[0].element_size())

    with ExitStack() as stack:
        for site in model.sites():
            if not site.is_weight:
                watch(stack, site.quantizer, note)
        model(image)
    return largest


def range_images(model: QuantizedModel, calibration: Calibration) -> int:
    """Return how many images a reconstruction takes ranges from: what fits `RANGE_BYTES`, within bounds.

    It depends on model and images alone, not on the machine, for so do the ranges.
    """
    count = calibration.n_images
    if count <= LEAST_RANGE_IMAGES:
        return count
    fitting = RANGE_BYTES // largest_activation(model, calibration.batches[0][:1])
    return min(count, max(LEAST_RANGE_IMAGES, min(RANGE_IMAGES, fitting)))


GB = 10**9

DEFAULT_GB = 6.0


def budget() -> float:
    """Return the bytes of host memory that calibration may keep activations in.

    Raises:
        MethodError: the environment variable ``BENCH_CACHE_GB`` is not a positive number.
    """
    text = os.environ.get("BENCH_CACHE_GB", str(DEFAULT_GB))
    value = number(text)
    if value is None or out_of_bounds(value, {"more_than": 0}):
        raise MethodError(
            f"BENCH_CACHE_GB must be a number of gigabytes above 0, not {shown(text)}"
        )
    return value * GB


def available(device: torch.device) -> float:
    """Return the bytes that can be had on ``device``; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * float(found[0]) if found else math.inf


def require(need: float, device: torch.device, what: str) -> None:
    """Refuse what cannot fit.

    Args:
        need: bytes.
        device: where.
        what: is computed, for the message.

    Raises:
        MethodError: ``need`` is more than there is; both are said.
    """
    there = available(device)
    if need > there:
        raise MethodError(
            f"{what} needs about {need / GB:.1f} GB of memory and {there / GB:.1f} GB are free; use fewer "
            "calibration images, fewer runs at a time (--workers), or a machine with more"
        )


def give_back() -> None:
    """Return to the system what was freed, which glibc keeps for later until it is asked.

    Recordings outlive the passes that they come from, and are freed one by one: the holes that they leave are
    too small for the next pass.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
