"""One-stage detectors and DETRs of mmdet: the wrapped one is the original, and methods quantize it."""

import pytest
import torch
from torch import nn

from tests.small_detectors import DETRS, ONE_STAGE, VITS, small_config, small_detector
from vit_ptq_bench.bench.contract.models import build_detector
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.recording import record_operations
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.reconstruction.units import run_rest, units_of
from vit_ptq_bench.methods.quantization.transforms.apply import apply_transforms

SIZE = (64, 96)


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    return {
        kind: small_detector(folder, small_config(kind)) for kind in (*ONE_STAGE, *DETRS, *VITS)
    }


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predicted(model, images):
    from mmdet.structures import DetDataSample

    facts = {
        "img_shape": SIZE,
        "batch_input_shape": SIZE,
        "ori_shape": SIZE,
        "scale_factor": (1.0, 1.0),
        "img_id": 1,
    }
    samples = [DetDataSample(metainfo=facts) for _ in images]
    return [sample.pred_instances for sample in model(images, samples, mode="predict")]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.bboxes, b.bboxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        *((kind, scope) for kind in (*ONE_STAGE, *VITS) for scope in ("backbone", "full")),
        *((kind, "backbone") for kind in DETRS),
    ],
)
def test_with_quantizers_off_boxes_and_scores_are_the_originals(detectors, images, kind, scope):
    wrapped = wrap_model(detectors[kind], equal_table(BitWidth(4, 4)).with_scope(scope))
    expected = predicted(detectors[kind], images)
    assert sum(len(found) for found in expected) > 20
    assert_same(predicted(wrapped, images), expected)


@pytest.mark.parametrize("kind", ONE_STAGE)
def test_full_scope_quantizes_every_layer_of_neck_and_head(detectors, images, kind):
    wrapped = wrap_model(detectors[kind], equal_table(BitWidth(4, 4)).with_scope("full"))
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    assert not [name for name, m in wrapped.named_modules() if isinstance(m, kinds)]
    assert {op.role for op in wrapped.structure.behind()} == {"neck", "bbox_head"}
    maps = detectors[kind].extract_feat(images)
    observed = wrapped(images)
    for a, b in zip(observed, maps, strict=False):
        assert torch.equal(a, b)
    heads = 2 if kind in ("retinanet", "gfl") else 3
    assert len(observed) == len(maps) * (1 + heads)


@pytest.mark.parametrize("kind", ["retinanet", "fcos_vit", "mask_rcnn_swin_mini"])
def test_a_recorded_output_is_the_layers_and_not_what_relu_makes_of_it(detectors, images, kind):
    model = detectors.get(kind) or build_detector(kind)
    wrapped = wrap_model(model, equal_table(BitWidth(4, 4)).with_scope("full"))
    for operation, recording in record_operations(
        wrapped, Calibration([images[:2]]), operations=wrapped.structure.behind()
    ):
        first, weight = operation.operands(recording.inputs)
        torch.testing.assert_close(operation.compute(first, weight), recording.output)


def test_a_head_that_the_levels_share_is_calibrated_on_all_of_them(detectors, images):
    model = detectors["fcos"]
    method = METHODS.get("minmax").create()
    table = method.bit_table(BitWidth(8, 8)).with_scope("full")
    quantized = method.quantize(model, table, Calibration([images]))
    seen = [m.aminmax() for m in model.extract_feat(images)]
    low, high = min(s.min for s in seen), max(s.max for s in seen)
    for tower in ("cls_convs", "reg_convs"):
        layer = getattr(quantized.module.bbox_head, tower)[0].conv
        assert layer.weight_quantizer.scale.numel() == layer.weight.shape[0]
        width = layer.input_quantizer.scale * 255
        torch.testing.assert_close(width, (high - low).reshape(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "scope"),
    [
        ("repq-vit", "retinanet", "full"),
        ("gptq", "gfl", "full"),
        ("ptq4vit", "fcos", "full"),
        ("lrquant", "atss", "full"),
        ("qdrop", "retinanet", "full"),
        ("apq-vit", "fcos", "backbone"),
        ("repq-vit", "detr", "backbone"),
        ("brecq", "dino", "backbone"),
        ("repq-vit", "fcos_vit", "full"),
        ("qdrop", "retinanet_vit", "backbone"),
        ("lrquant", "fcos_vit", "full"),
        ("apq-vit", "retinanet_vit", "backbone"),
    ],
)
def test_statistics_search_and_reconstruction_stay_close_at_6_bits(
    detectors, images, name, kind, scope
):
    cls = METHODS.get(name)
    method = cls.create(dict(cls.quick))
    table = method.bit_table(BitWidth(6, 6)).with_scope(scope)
    quantized = method.quantize(detectors[kind], table, Calibration([images[:4], images[4:]]))
    exact = detectors[kind].extract_feat(images)
    for a, b in zip(quantized(images), exact, strict=False):
        assert (a - b).square().sum() / b.square().sum() < 0.5
    assert len(predicted(quantized, images[:2])) == 2


@pytest.mark.parametrize("kind", DETRS)
def test_encoder_and_decoder_have_no_roles(detectors, kind):
    table = equal_table(BitWidth(4, 4))
    with pytest.raises(MethodError, match="no role is known for the layers of its encoder and dec"):
        wrap_model(detectors[kind], table.with_scope("full"))


def test_blocks_of_a_plain_vit_have_the_roles_that_they_have_in_a_classifier(detectors):
    wrapped = wrap_model(detectors["fcos_vit"], equal_table(BitWidth(4, 4)).with_scope("full"))
    inside = [op for op in wrapped.operations if op.name.startswith("backbone.vit.")]
    block = ["qkv", "scores", "context", "proj", "fc1", "fc2"]
    assert [op.role for op in inside] == ["patch_embed", *block, *block]
    assert len({site.name for site in wrapped.sites()}) == len(list(wrapped.sites()))
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    left = {type(m).__name__ for m in wrapped.modules() if isinstance(m, kinds)}
    assert left == {"ConvTranspose2d"}


@torch.no_grad()
@pytest.mark.parametrize("granularity", ["block", "half", "stage"])
def test_segments_and_tail_of_a_plain_vit_are_backbone_and_neck(detectors, images, granularity):
    structure = wrap_model(detectors["fcos_vit"], equal_table(BitWidth(32, 32))).structure
    units = units_of(structure, granularity)
    found = run_rest(units, structure.tail, (), units[0].run(images))
    for a, b in zip(found, detectors["fcos_vit"].extract_feat(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*DETRS, *ONE_STAGE, *VITS])
def test_transforms_keep_what_the_neck_gives(detectors, images, kind):
    """Scales and shifts behind norms, rotated streams and heads, on maps of 64 x 96."""
    table = equal_table(BitWidth(32, 32))
    wrapped = wrap_model(detectors[kind], table)
    names = ("shift-norms", "rotate-heads", "centre-keys", "equalise-heads")
    if wrapped.structure.streams:
        names = ("rotate-residual", *names)
    apply_transforms(wrapped, names, Calibration([images]))
    exact = detectors[kind].extract_feat(images)
    for a, b in zip(wrapped(images), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_streams_are_read_by_lateral_convolutions_but_for_one_that_an_extra_level_reads(
    tmp_path, detectors
):
    table = equal_table(BitWidth(8, 8))
    both = wrap_model(detectors["retinanet"], table).structure
    assert [stream.stage for stream in both.streams] == [1]
    assert "norm writes it" in both.fixed_streams[0]
    content = small_config("retinanet")
    content["model"]["neck"] = content["model"]["neck"] | {"add_extra_convs": "on_input"}
    last = wrap_model(small_detector(tmp_path, content), table).structure
    assert last.streams == []
    assert "not known what in the neck" in last.fixed_streams[1]
    assert len(wrap_model(detectors["detr"], table).structure.streams) == 1
    assert wrap_model(detectors["dino"], table).structure.streams == []
    assert len(wrap_model(detectors["retinanet_vit"], table).structure.streams) == 1
    several = wrap_model(detectors["fcos_vit"], table).structure.fixed_streams
    assert "plain_vit.SimpleFeaturePyramid) reads it" in several[0]
