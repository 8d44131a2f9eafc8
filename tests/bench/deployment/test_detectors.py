"""Detectors on feature maps from elsewhere: the same boxes, and how boxes are compared."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample

from vit_ptq_bench.bench.contract.models import DETECTOR_SIZE as SIZE
from vit_ptq_bench.bench.contract.models import build_detector
from vit_ptq_bench.bench.deployment.detectors import DetectorOn, FeatureMaps, Found, padded
from vit_ptq_bench.bench.deployment.exporting import Subject, export_onnx, told
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.registry import make_task
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.deployment.lowering import QuantizedGraph
from vit_ptq_bench.tasks import LoadedModel
from vit_ptq_bench.tasks.api.options import TaskOptions


def facts(count):
    size = {"img_shape": SIZE, "ori_shape": SIZE, "batch_input_shape": SIZE}
    return [
        DetDataSample(metainfo=size | {"scale_factor": (1.0, 1.0), "img_id": i})
        for i in range(count)
    ]


@torch.no_grad()
def test_heads_find_in_maps_from_elsewhere_what_the_detector_finds():
    detector = build_detector()
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    expected = [s.pred_instances for s in detector(images, facts(2), mode="predict")]
    calls = []

    def features(given):
        calls.append(given.shape)
        return FeatureMaps(detector)(given)

    on = DetectorOn(detector, features, SIZE)
    found = [s.pred_instances for s in on(images, facts(2), mode="predict")]
    assert calls == [images.shape] and len(expected[0]) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.bboxes, other.bboxes) and torch.equal(one.scores, other.scores)
    assert [len(one.labels) for one in on.found] == [
        int((one.scores >= 0.3).sum()) for one in expected
    ]
    assert "extract_feat" not in vars(detector)


@torch.no_grad()
def test_other_maps_find_other_boxes():
    detector = build_detector()
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    (expected,) = detector(images, facts(1), mode="predict")
    halved = DetectorOn(detector, lambda x: tuple(m / 2 for m in FeatureMaps(detector)(x)), SIZE)
    (found,) = halved(images, facts(1))
    assert not torch.equal(found.pred_instances.scores, expected.pred_instances.scores)


@torch.no_grad()
def test_smaller_images_are_padded_as_mmdet_pads_a_batch():
    detector = build_detector()
    size = (SIZE[0] + 32, SIZE[1] + 64)
    image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    whole = padded(image, size)
    assert whole.shape[2:] == size and torch.equal(whole[..., : SIZE[0], : SIZE[1]], image)
    assert float(whole[..., SIZE[0] :, :].abs().max()) == 0
    fact = facts(1)
    (expected,) = detector(whole, facts(1), mode="predict")
    (found,) = DetectorOn(detector, FeatureMaps(detector), size)(image, fact)
    assert torch.equal(found.pred_instances.bboxes, expected.pred_instances.bboxes)
    assert fact[0].batch_input_shape == size
    with pytest.raises(BenchError, match="does not fit the file's 8 x 8; export with --size"):
        padded(image, (8, 8))


def test_a_file_of_feature_maps_is_judged_by_the_heads_behind_it(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from vit_ptq_bench.bench.deployment.comparison import Comparison
    from vit_ptq_bench.bench.deployment.runtimes import OnnxRuntime

    task = make_task("scenes", TaskOptions(limit=2))
    loaded = LoadedModel("mask_rcnn_swin_mini", build_detector())
    batches = task.calibration_batches(loaded, 4, 0)
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth.parse("W8A8")).with_scope("full")
    quantized = method.quantize(loaded.module, table, Calibration(batches))
    spec = SimpleNamespace(facts={"method": "minmax"})
    subject = Subject(spec, task, loaded, quantized, size=(160, 192))
    written = export_onnx(subject, tmp_path / "m.onnx", 21, packed=False)
    assert "backbone and neck for images of 160 x 192" in "\n".join(told(written, subject))
    assert {site.site.split(".")[0] for site in written.sites} == {"backbone", "neck"}
    said = []
    rows = Comparison(subject, written, 1, said.append).rows(False, loaded, None)
    titles = [row.title.partition(" 1")[0] for row in rows]
    assert titles == [
        "simulated in torch",
        "simulated in float64",
        "its operators in float64",
        "deployed on ONNX Runtime",
        "FP32 on ONNX Runtime",
    ]
    assert [row.alike is None for row in rows] == [True, False, False, False, True]
    assert [row.milliseconds is None for row in rows] == [True, True, True, False, False]
    assert all(row.images == 2 for row in rows) and len(said) == 6 and rows[2].alike == 100
    images = padded(batches[0], (160, 192))
    with torch.no_grad():
        found, expected = OnnxRuntime(written.path, 1)(images), QuantizedGraph(quantized)(images)
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        # What falls to the other side of a step is off; most is not.
        assert torch.isclose(one, other, rtol=1e-2, atol=1e-2).float().mean() > 0.9


def _on(*found):
    on = DetectorOn(torch.nn.Identity(), lambda images: images, SIZE)
    on.found = [Found(torch.tensor(b).view(-1, 4), torch.tensor(c).long()) for b, c in found]
    return on


def test_boxes_are_alike_by_class_and_overlap_one_to_one():
    a, near, far = [0.0, 0, 10, 10], [0.0, 0, 10, 8], [20.0, 20, 30, 30]
    assert _on(([a], [1])).alike(_on(([near], [1]))) == 100
    assert _on(([a], [1])).alike(_on(([near], [2]))) == 0
    assert _on(([a], [1])).alike(_on(([far], [1]))) == 0
    # Two boxes on one object: one of them has a partner. 2 x 1 of 3 boxes.
    assert _on(([a, near], [1, 1])).alike(_on(([a], [1]))) == pytest.approx(200 / 3)
    # The better pair is taken, and the rest find each other.
    assert _on(([a, near], [1, 1])).alike(_on(([near, a], [1, 1]))) == 100
    # Images add up: 2 x 1 of 2, 2 x 0 of 1.
    assert _on(([a], [1]), ([a], [1])).alike(_on(([a], [1]), ([], []))) == pytest.approx(200 / 3)
    assert _on(([], [])).alike(_on(([], []))) == 100
