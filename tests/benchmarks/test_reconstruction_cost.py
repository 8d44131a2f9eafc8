"""One iteration of reconstruction against the plain passes that its loss needs.

Plain is, for a batch of the same size: forward and backward of the unit in floating point, with the
full-precision rest of the model behind it where the same output is followed to the penultimate feature; twice
where a prediction of another input is compared as well as the output, the rest behind one of them; and a
forward without gradients where the loss compares with what full precision gives inside.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from itertools import pairwise
from statistics import median

import pytest
import torch

from tests.benchmarks.bounds import hold
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.reconstruction.activation_trainables import Ranges
from vit_ptq_bench.methods.quantization.reconstruction.smoothing import Smoothing
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Clipping

TARGET = 1.5

MISSED = {"brecq": 2.28, "qdrop": 2.7, "ls-vit": 3.15, "lrquant": 2.3}
"""What iterations above the target have come to, on the slowest processor; docs/performance.md counts why."""

BATCH = 8
BITS = BitWidth(4, 4)
ITERATIONS = 7
ROUNDS = 5

NEEDS = {
    "brecq": (),
    "qdrop": (),
    "pd-quant": ("prediction",),
    "mgrq": ("prediction", "inside"),
    "lrquant": (),
    "ls-vit": (),
    "glf-q": ("rest",),
}
"""What the loss of a method needs besides the unit's own output."""


def _plain_seconds(vit, needs):
    """Processor seconds of the plain passes of one iteration in each of the twelve blocks."""
    blocks = list(vit.blocks)
    x = torch.randn(BATCH, 197, 192)
    found = []
    for _ in range(ROUNDS):
        total = 0.0
        for index, block in enumerate(blocks):
            block.requires_grad_(True)
            start = time.process_time()
            if "inside" in needs:
                with torch.no_grad():
                    block(x)
            output = block(x)
            loss = output.square().mean()
            if "prediction" in needs or "rest" in needs:
                z = block(x) if "prediction" in needs else output
                for later in blocks[index + 1 :]:
                    z = later(z)
                loss = loss + z.square().mean()
            loss.backward()
            total += time.process_time() - start
            block.requires_grad_(False)
            vit.zero_grad()
        found.append(total)
    return min(found)


def _iteration_seconds(method, vit, calibration, bits):
    """Processor seconds of one iteration in each of the twelve blocks: medians, the first left out."""
    stamps = defaultdict(list)

    def stamp(done, total, stage=""):
        stamps[stage].append(time.process_time())

    method.quantize(vit, method.bit_table(bits), calibration, stamp)
    blocks = {stage: times for stage, times in stamps.items() if stage.startswith("blocks.")}
    assert len(blocks) == 12 and all(len(times) == ITERATIONS for times in blocks.values())
    return sum(median(b - a for a, b in pairwise(times)) for times in blocks.values())


def _in_plain_passes(method, needs, benchmark, vit, calibration, bits=BITS):
    """One iteration in units of the plain passes that its loss needs."""
    seconds = []
    benchmark.pedantic(
        lambda: seconds.append(_iteration_seconds(method, vit, calibration, bits)), rounds=1
    )
    trained = [p.requires_grad for p in vit.parameters()]
    vit.requires_grad_(False)
    plain = _plain_seconds(vit, needs)
    for parameter, before in zip(vit.parameters(), trained, strict=True):
        parameter.requires_grad_(before)
    return seconds[0] / plain


SETTINGS = {"iterations": ITERATIONS, "batch_size": BATCH}

ITERATIONS_ALONE: dict[str, dict[str, object]] = {"mgrq": {"holdout": 0.0}}
"""Settings without what a method does now and then between iterations: of so few it would be in each."""


@pytest.mark.parametrize("name", list(NEEDS))
def test_iteration(name, benchmark, vit, calibration, ratio):
    method = METHODS.get(name).create(SETTINGS | ITERATIONS_ALONE.get(name, {}))
    cost = _in_plain_passes(method, NEEDS[name], benchmark, vit, calibration)
    benchmark.extra_info.update(iteration=round(cost, 3), iteration_target=TARGET)
    ratio(benchmark)
    hold(f"an iteration of {name} in plain ones", cost, TARGET, MISSED.get(name))


PARTS = {
    "clipped weights": (Clipping,),
    "and quantized activations": (Clipping, Ranges),
    "and smoothing (all)": (Clipping, Ranges, Smoothing),
}


@pytest.mark.parametrize("part", list(PARTS))
def test_what_an_iteration_of_lrquant_is_made_of(part, benchmark, vit, calibration, ratio):
    class Part(METHODS.get("lrquant")):
        def recipe(self, gain=False):
            whole = super().recipe(gain)
            kept = tuple(x for x in whole.trainables if isinstance(x, PARTS[part]))
            return dataclasses.replace(whole, trainables=kept)

    # Activations are calibrated by their trainable: without it there is nothing to quantize them with.
    bits = BitWidth(4, 4 if Ranges in PARTS[part] else 32)
    cost = _in_plain_passes(Part.create(SETTINGS), (), benchmark, vit, calibration, bits)
    print(f"\nlrquant with {part}: {cost:.2f} plain ones")
    ratio(benchmark)
