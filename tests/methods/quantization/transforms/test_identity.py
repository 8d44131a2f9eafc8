"""Transforms keep the full-precision function of every model that they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.methods.quantization.model.test_mmdet_swin import _predict
from tests.methods.quantization.transforms.models import (
    BUILDERS,
    assert_same,
    classifier,
    images_for,
)
from vit_ptq_bench.bench.contract.models import build_detector
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import (
    calibrate_activations,
    calibrate_weights,
)
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized
from vit_ptq_bench.methods.quantization.transforms.apply import apply_transforms
from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS

TABLE = equal_table(BitWidth(4, 4)).change("norm.input", bits=8)

TOGETHER = ("rotate-residual", "shift-norms", "rotate-heads", "centre-keys", "equalise-heads")

BEHIND = ("shift-norms", "rotate-residual-random", "smooth-norms", "rotate-residual")
"""A rotation behind norms that were changed has their scales, shifts and padding to take along."""

KEEPING = [name for name, card in TRANSFORMS.items() if not card.other_operation]

CHAINS = {name: (name,) for name in KEEPING} | {"together": TOGETHER, "behind": BEHIND}


def transformed(
    model: nn.Module, names: tuple[str, ...], images: Tensor, scope: str = "backbone"
) -> QuantizedModel:
    wrapped = wrap_model(model, TABLE.with_scope(scope))
    apply_transforms(wrapped, names, Calibration([images[:2], images[2:]], seed=3))
    return wrapped


ALONE = ("vit", "swin, windows of 3", "swin, three stages")
"""Models that every chain meets; the others meet all transforms together."""

CASES = [(name, chain) for name in ALONE for chain in CHAINS] + [
    (name, "together") for name in BUILDERS if name not in ALONE
]


@pytest.mark.parametrize(("name", "chain"), CASES)
@torch.no_grad()
def test_the_logits_of_classifiers_stay(name: str, chain: str) -> None:
    model, images = classifier(name), images_for(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = transformed(model, CHAINS[chain], images)
    assert_same(wrapped(images), model(images))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    after = wrapped.state_tensors()
    assert any(key not in before or not torch.equal(after[key], before[key]) for key in after)
    x = images
    for segment in wrapped.structure.segments:
        x = segment.run(x)
    assert_same(x, model(images))


def merged_streams(wrapped: QuantizedModel) -> list[int]:
    """Stages whose residual stream is mixed and read by a patch merging."""
    streams = wrapped.structure.streams
    return [s.stage for s in streams if any(reader.tokens > 1 for reader in s.readers)]


def test_a_merging_reads_a_rotated_stream_where_there_are_three_stages() -> None:
    classes = transformed(
        classifier("swin, three stages"), ("rotate-residual",), images_for("swin, three stages")
    )
    assert merged_streams(classes) == [1]
    assert merged_streams(wrap_model(build_detector(stages=3), TABLE)) == [1]
    assert merged_streams(wrap_model(build_detector(), TABLE)) == []


@pytest.mark.parametrize(
    ("name", "scope", "names", "stages"),
    [
        ("mask_rcnn_swin_mini", "backbone", TOGETHER, 2),
        ("mask_rcnn_swin_mini", "full", BEHIND, 2),
        ("cascade_mask_rcnn_swin_mini", "full", TOGETHER, 2),
        ("mask_rcnn_swin_mini", "full", ("rotate-residual",), 3),
        ("mask_rcnn_swin_mini", "backbone", BEHIND, 3),
    ],
)
@torch.no_grad()
def test_feature_maps_boxes_and_masks_of_detectors_stay(
    name: str, scope: str, names: tuple[str, ...], stages: int
) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    detector = build_detector(name, stages)
    expected, features = _predict(detector, images), detector.extract_feat(images)
    assert sum(len(found) for found in expected) > 5
    wrapped = transformed(detector, names, images, scope)
    assert [stream.stage for stream in wrapped.structure.streams] == list(range(1, stages))
    for found, exact in zip(wrapped(images), features, strict=False):
        assert_same(found, exact)
    for found, exact in zip(_predict(wrapped, images), expected, strict=True):
        torch.testing.assert_close(found.bboxes, exact.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=1e-4)
        assert torch.equal(found.labels, exact.labels)
        assert (found.masks != exact.masks).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["no biases", "layer scale", "swin, windows of 3"])
@torch.no_grad()
def test_a_saved_model_is_the_transformed_one(name: str, tmp_path: Path) -> None:
    model, images = classifier(name), images_for(name)
    wrapped = transformed(model, TOGETHER, images)
    calibrate_weights(wrapped, minmax_rule)
    calibrate_activations(wrapped, Calibration([images]), minmax_rule)
    wrapped.freeze()
    save_quantized(wrapped, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", model)
    assert torch.equal(again(images), wrapped(images))


@torch.no_grad()
def test_a_saved_detector_has_the_biases_that_its_neck_got(tmp_path: Path) -> None:
    model = build_detector("mask_rcnn_swin_mini")
    for lateral in model.neck.lateral_convs:
        lateral.conv.bias = None
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wrapped = transformed(model, TOGETHER, images)
    assert wrapped.module.neck.lateral_convs[1].conv.bias is not None
    calibrate_weights(wrapped, minmax_rule)
    calibrate_activations(wrapped, Calibration([images]), minmax_rule)
    wrapped.freeze()
    save_quantized(wrapped, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", model)
    assert all(torch.equal(a, b) for a, b in zip(again(images), wrapped(images), strict=True))
