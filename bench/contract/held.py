"""Memory that a method holds between passes, per image."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from vit_ptq_bench.bench.contract import models
from vit_ptq_bench.bench.contract.subject import Subject
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.model.families import wrap_model

FEW, MANY = 8, 24
"""Images of the two calibrations that are compared."""

EACH = 8
"""Passes at whose beginning is looked; of those behind it, at the 16th, the 32nd and so on."""

CACHE_GB = "0.0001"
"""Of ``BENCH_CACHE_GB``: what is kept through it goes to disk, as on a large model."""


def held_per_image(subject: Subject) -> float:
    """Return the bytes by which what is held between passes grows with each further image."""
    with _little_cache():
        few, many = _held(subject, FEW), _held(subject, MANY)
    return (many - few) / (MANY - FEW)


@torch.no_grad()
def seen_per_image(subject: Subject) -> int:
    """Return the bytes of all that the quantizers of activations see of one image."""
    model = wrap_model(subject.model, subject.method.bit_table(BitWidth(4, 4)))
    total = 0

    def note(module: object, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        total += inputs[0].numel() * inputs[0].element_size()

    with ExitStack() as stack:
        for site in model.sites():
            if not site.is_weight:
                stack.callback(site.quantizer.register_forward_pre_hook(note).remove)
        model(subject.images[:1])
    return total


def _held(subject: Subject, images: int) -> int:
    """Most bytes of tensors alive where a pass through the model begins, and at the end."""
    calibration = models.in_batches(models.make_images(images), seed=3)
    before = _storages()  # held: none of them goes, and no new one takes its address
    most, count = 0, 0

    def look(module: object, inputs: object) -> None:
        nonlocal most, count
        count += 1
        if count <= EACH or count & (count - 1) == 0:  # looking takes longer than the pass
            most = max(most, _bytes_beside(before))

    model = subject.model
    kind = type(model)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: look(module, inputs) if type(module) is kind else None
    )
    gc.freeze()  # what there was is not gone through again and again: it is most of all objects
    try:
        quantized = subject.fresh("W4A4", calibration=calibration)
        most = max(most, _bytes_beside(before))
    finally:
        gc.unfreeze()
        handle.remove()
    del quantized  # what it holds is held until here
    return most


def _storages() -> dict[int, torch.UntypedStorage]:
    """The storages of all tensors that Python can reach, by their address."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage
    return found


def _bytes_beside(before: Mapping[int, object]) -> int:
    """Bytes of the storages that there were not before."""
    return sum(one.nbytes() for address, one in _storages().items() if address not in before)


@contextmanager
def _little_cache() -> Iterator[None]:
    before = os.environ.get("BENCH_CACHE_GB")
    os.environ["BENCH_CACHE_GB"] = CACHE_GB
    try:
        yield
    finally:
        if before is None:
            del os.environ["BENCH_CACHE_GB"]
        else:
            os.environ["BENCH_CACHE_GB"] = before
