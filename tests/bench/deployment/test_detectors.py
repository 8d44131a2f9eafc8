"""Detectors on feature maps from elsewhere: the same boxes, and how boxes are compared."""

import pytest
import torch
from mmdet.structures import DetDataSample

from vit_ptq_bench.bench.contract.models import DETECTOR_SIZE as SIZE
from vit_ptq_bench.bench.contract.models import build_detector
from vit_ptq_bench.bench.deployment.detectors import DetectorOn, FeatureMaps, Found, padded
from vit_ptq_bench.bench.errors import BenchError


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
