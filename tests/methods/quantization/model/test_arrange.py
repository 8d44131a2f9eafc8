"""The layout in which attention reads the residual stream, as `Segment.arrange` gives it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from tests.methods.quantization.model.test_identity import PADDED, SWIN, WHOLE, random
from vit_ptq_bench.bench.contract.models import build_classifier, build_detector, sharpened
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.structure import Segment

FLOATING = equal_table(BitWidth(32, 32))


CASES = ("vit", *PADDED, *WHOLE, "detector")


@cache
def case(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """A model and the size of its images."""
    if name == "vit":
        return build_classifier(name), (16, 16)
    if name == "detector":
        return build_detector("mask_rcnn_swin_mini"), (64, 48)
    settings, size = (PADDED | WHOLE)[name]
    return sharpened(SwinTransformer(**SWIN, **settings), 1), size


def record_attention(model: nn.Module, images: Tensor) -> list[tuple[Segment, Tensor, Tensor]]:
    """Of each block the attention half, the stream before it, and what its qkv layer was shown."""
    wrapped = wrap_model(model, FLOATING)
    found = []
    x = images
    for segment in wrapped.structure.segments:
        if segment.halves:
            half, seen = segment.halves[0], []
            qkv = next(op for op in half.operations if op.role == "qkv")
            hook = qkv.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
            half.run(x)
            hook.remove()
            found.append((half, x, seen[0][0]))
        x = segment.run(x)
    return found


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_norm_of_the_stream_arranged_is_what_qkv_reads(name: str) -> None:
    model, size = case(name)
    halves = record_attention(model, random(0, 2, 3, *size))
    assert halves
    norms = [
        module for key, module in model.named_modules() if key.endswith("norm1") and "blocks" in key
    ]
    for (half, x, read), norm in zip(halves, norms, strict=True):
        assert torch.equal(half.arrange(norm(x)), read)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_padded_tokens_are_zero_and_every_other_token_is_there_once(name: str) -> None:
    model, size = case(name)
    padded = 0
    for half, x, read in record_attention(model, random(0, 2, 3, *size)):
        numbers = torch.arange(1.0, 1 + x[..., 0].numel()).view(x.shape[:-1])
        ones = half.arrange(torch.ones_like(x))
        arranged = half.arrange(numbers[..., None])[..., 0]
        assert ones.shape == read.shape
        assert set(ones.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(arranged != 0, ones[..., 0] == 1)
        assert torch.equal(arranged[arranged != 0].sort().values, numbers.flatten())
        padded += int((ones == 0).sum())
    assert bool(padded) == (name in PADDED or name == "detector")
