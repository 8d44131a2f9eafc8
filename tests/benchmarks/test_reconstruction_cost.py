"""One iteration of reconstruction against the plain passes that its loss needs."""

from __future__ import annotations

import time

import pytest
import torch

from methods import METHODS
from methods.quantization import BitWidth

TARGET = 1.5
BATCH = 8
ITERATIONS = 6
BLOCKS = 14
"""Units of ViT-Tiny: embedding, twelve blocks, head."""


def _plain_seconds(vit, images, whole_model):
    """Forward and backward of a block, and of the full-precision rest where the loss needs it."""
    blocks = list(vit.blocks)
    x = torch.randn(BATCH, 197, 192)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        for index, block in enumerate(blocks):
            for parameter in block.parameters():
                parameter.requires_grad_(True)
            y = block(x.detach())
            loss = y.square().mean()
            if whole_model:
                z = block(x.detach())
                for later in blocks[index + 1 :]:
                    for parameter in later.parameters():
                        parameter.requires_grad_(False)
                    z = later(z)
                loss = loss + z.square().mean()
            loss.backward()
            vit.zero_grad()
        seconds.append(time.process_time() - start)
    for parameter in vit.parameters():
        parameter.requires_grad_(True)
    return min(seconds)


@pytest.mark.parametrize("name", ["brecq", "qdrop", "pd-quant", "mgrq", "lrquant"])
def test_iteration(name, benchmark, vit, images, calibration, ratio):
    def seconds(iterations):
        method = METHODS.get(name).create({"iterations": iterations, "batch_size": BATCH})
        start = time.process_time()
        method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)
        return time.process_time() - start

    def one_iteration_of_every_unit():
        return (seconds(1 + ITERATIONS) - seconds(1)) / ITERATIONS

    cost = benchmark.pedantic(one_iteration_of_every_unit, rounds=1)
    plain = _plain_seconds(vit, images, name in ("pd-quant", "mgrq"))
    benchmark.extra_info.update(iteration=round(cost / plain, 3), iteration_target=TARGET)
    print(f"\n{name}: an iteration costs {cost / plain:.2f} plain ones, at most {TARGET}")
    assert ratio(benchmark, None) > 0
