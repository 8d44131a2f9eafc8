"""Batches on their way to the device that computes."""

import pytest
import torch

from vit_ptq_bench.tasks.api.transfer import moved, wants_pinned

CUDA = torch.device("cuda")


class Batch:
    """Notes what is asked of it in the place of a tensor, of which nothing can be pinned without a GPU."""

    device = torch.device("cpu")

    def __init__(self, pinned=False):
        self.pinned, self.asked = pinned, []

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        self.asked.append("pin")
        return self

    def to(self, device, non_blocking=False):
        self.asked.append((device.type, non_blocking))
        return self


def test_on_a_cpu_a_batch_stays_where_it_is():
    assert not wants_pinned(torch.device("cpu"))
    batch = torch.ones(3)
    assert moved(batch, torch.device("cpu")) is batch
    noted = Batch()
    moved(noted, torch.device("cpu"))
    assert noted.asked == [("cpu", False)]


def test_a_batch_for_a_gpu_is_pinned_once_and_nobody_waits_for_it():
    assert wants_pinned(CUDA)
    for pinned, asked in ((False, ["pin", ("cuda", True)]), (True, [("cuda", True)])):
        batch = Batch(pinned)
        moved(batch, CUDA)
        assert batch.asked == asked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_what_arrives_on_a_gpu_is_what_was_sent():
    batch = torch.randn(64, 3, 224, 224)
    assert torch.equal(moved(batch, CUDA).cpu(), batch)
    assert torch.equal(moved(moved(batch, CUDA), CUDA).cpu(), batch)
