"""Calibration where memory is scarce: once more with half the batch, while the method has one to halve."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable

import numpy as np
import torch

from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.quantization.calibration.memory import give_back, is_out_of_memory
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

logger = logging.getLogger(__name__)


def quantize_within_memory(
    method: Method,
    quantize: Callable[[Method], QuantizedModel],
    device: torch.device,
    warnings: list[str],
) -> QuantizedModel:
    """Return what ``quantize`` makes with ``method``, or with less of a batch for want of memory.

    Every try finds the random generators as the first one did: the result is to the bit that of a run which
    was asked for the smaller batch.

    Args:
        method: to begin with.
        quantize: leaves nothing behind when it raises.
        device: where it computes.
        warnings: takes a sentence for each further try.

    Raises:
        Exception: whatever ``quantize`` raises, out of memory with the smallest batch too.
    """
    restore = _remembered_state(device)
    while True:
        try:
            return quantize(method)
        except (RuntimeError, MemoryError) as error:
            smaller = method.with_half_batch() if is_out_of_memory(error) else None
            if smaller is None:
                raise
        # Only here has the error let go of what its frames hold.
        gc.collect()
        give_back()
        torch.cuda.empty_cache()  # nothing where CUDA is not in use
        text = (
            f"out of memory with batches of {method.batch_images} images; calibrated again with "
            f"batches of {smaller.batch_images}"
        )
        logger.warning(text)
        warnings.append(text)
        method = smaller
        restore()


def _remembered_state(device: torch.device) -> Callable[[], None]:
    """Return a function that puts the random generators of this process back into their present state."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return restore
