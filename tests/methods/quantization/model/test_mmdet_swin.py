"""Detectors of mmdet: the wrapped one is the original, and every method can quantize it."""

import copy

import pytest
import torch
from torch import nn

from vit_ptq_bench.bench.contract.models import DETECTOR_SIZE as SIZE
from vit_ptq_bench.bench.contract.models import build_detector
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import DETECTOR_KEYS, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.families.mmdet_swin import QuantShiftedWindows
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader
from vit_ptq_bench.methods.quantization.reconstruction.units import run_rest, units_of
from vit_ptq_bench.tasks.detection.zoo import BUNDLED

FLOATING = equal_table(BitWidth(32, 32))


@pytest.fixture(scope="module", params=BUNDLED)
def detector(request):
    return build_detector(request.param)


@pytest.fixture(scope="module")
def mask_rcnn():
    return build_detector("mask_rcnn_swin_mini")


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calibration(images):
    return Calibration([images[:4], images[4:]], seed=0)


def _samples(n):
    from mmdet.structures import DetDataSample

    facts = {"img_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0), "img_id": 1}
    return [DetDataSample(metainfo=facts) for _ in range(n)]


@torch.no_grad()
def _predict(model, images):
    return [
        sample.pred_instances for sample in model(images, _samples(len(images)), mode="predict")
    ]


def _assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.bboxes, b.bboxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.masks, b.masks)


@pytest.mark.parametrize("scope", ["backbone", "full"])
def test_with_quantizers_off_boxes_scores_and_masks_are_the_originals(detector, images, scope):
    wrapped = wrap_model(detector, equal_table(BitWidth(4, 4)).with_scope(scope))
    expected = _predict(detector, images)
    assert sum(len(found) for found in expected) > 20
    _assert_same(_predict(wrapped, images), expected)


def test_full_scope_leaves_only_the_upsampling_of_masks_in_floating_point(detector):
    wrapped = wrap_model(detector, equal_table(BitWidth(4, 4)).with_scope("full"))
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    left = {type(m).__name__ for m in wrapped.modules() if isinstance(m, kinds)}
    assert left == {"ConvTranspose2d"}
    assert {f"{op.role}.weight" for op in wrapped.structure.behind()} == {
        key for key in DETECTOR_KEYS if key.endswith("weight")
    }


def test_backbone_scope_quantizes_the_backbone_alone(detector):
    wrapped = wrap_model(detector, equal_table(BitWidth(4, 4)))
    assert wrapped.structure.behind() == []
    assert all(op.name.startswith("backbone.") for op in wrapped.operations)
    assert isinstance(wrapped.module.rpn_head.rpn_conv, nn.Conv2d)


@torch.no_grad()
def test_segments_and_tail_are_backbone_and_neck(detector, images):
    wrapped = wrap_model(detector, FLOATING)
    expected = detector.extract_feat(images)
    for granularity in ("block", "half", "stage"):
        units = units_of(wrapped.structure, granularity)
        found = run_rest(units, wrapped.structure.tail, (), units[0].run(images))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_shift_folded_into_the_norm_moves_padded_tokens_too(mask_rcnn, images):
    """Windows of 7 do not divide 16 x 16: without the padding's share the output would change."""
    wrapped = wrap_model(mask_rcnn, FLOATING)
    before = wrapped(images)
    for link in wrapped.structure.norm_links:
        generator = torch.Generator().manual_seed(2)
        n = len(link.norm.weight)
        divisor = torch.rand(n, generator=generator) + 0.5
        fold_into_reader(link, divisor, torch.randn(n, generator=generator))
    padded = [m for m in wrapped.modules() if isinstance(m, QuantShiftedWindows)]
    assert all(bool(m.padding.value.any()) for m in padded)
    for a, b in zip(wrapped(images), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    for module in padded:
        module.padding.value.zero_()
    assert not torch.allclose(wrapped(images)[0], before[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        *((name, "full") for name in sorted(METHODS.module_dict)),
        *((name, "backbone") for name in ("apq-vit", "lrquant", "mgrq", "ptq4vit", "repq-vit")),
    ],
)
def test_every_method_quantizes_a_detector(name, scope, mask_rcnn, images, calibration):
    cls = METHODS.get(name)
    method = cls.create(dict(cls.quick))
    table = method.bit_table(BitWidth(6, 6)).with_scope(scope)
    state = copy.deepcopy(mask_rcnn.state_dict())
    quantized = method.quantize(mask_rcnn, table, calibration)
    assert all(torch.equal(state[key], value) for key, value in mask_rcnn.state_dict().items())
    exact = mask_rcnn.extract_feat(images)
    found = quantized(images)[: len(exact)]
    for a, b in zip(found, exact, strict=True):
        error = (a - b).square().sum() / b.square().sum()
        assert error < 0.5, float(error)
    assert len(_predict(quantized, images[:2])) == 2


def test_every_method_works_on_a_cascade_in_full_scope(images):
    cascade = build_detector("cascade_mask_rcnn_swin_mini")
    calibration = Calibration([images], seed=0)
    for name in ("ptq4vit", "gptq", "lrquant"):
        cls = METHODS.get(name)
        method = cls.create(dict(cls.quick))
        table = method.bit_table(BitWidth(6, 6)).with_scope("full")
        quantized = method.quantize(cascade, table, calibration)
        assert len(_predict(quantized, images[:2])) == 2


@pytest.mark.parametrize("protocol", ["equal", "authors"])
def test_an_image_without_detections_passes_through_quantized_heads(protocol, images):
    model = build_detector("cascade_mask_rcnn_swin_mini")
    model.roi_head.test_cfg.score_thr = 1.1
    method = METHODS.get("lrquant").create({"iterations": 0})
    table = method.bit_table(BitWidth(4, 4), protocol).with_scope("full")
    quantized = method.quantize(model, table, Calibration([images]))
    assert all(len(found) == 0 for found in _predict(quantized, images[:2]))
    empty = quantized.module.roi_head.bbox_head[0].shared_fcs[0]
    assert empty(torch.zeros(0, empty.weight.shape[1])).shape[0] == 0


def test_the_rpn_is_calibrated_on_all_levels(mask_rcnn, images):
    method = METHODS.get("minmax").create()
    table = method.bit_table(BitWidth(8, 8)).with_scope("full")
    quantized = method.quantize(mask_rcnn, table, Calibration([images]))
    convolution = quantized.module.rpn_head.rpn_conv
    seen = [m.aminmax() for m in mask_rcnn.extract_feat(images)]
    low, high = min(s.min for s in seen), max(s.max for s in seen)
    quantizer = convolution.input_quantizer
    width = quantizer.scale * 255
    torch.testing.assert_close(width, (high - low).reshape(1), rtol=1e-4, atol=1e-4)


def test_an_unknown_scope_is_refused():
    with pytest.raises(MethodError, match="backbone or full"):
        equal_table(BitWidth(4, 4)).with_scope("head")
