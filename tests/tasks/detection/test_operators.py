"""mmcv's operators on torchvision, through mmcv's own functions, against plain Python."""

import math
import sys
from itertools import product

import numpy as np
import pytest
import torch

from vit_ptq_bench.tasks.detection.operators import NAME, provide_operators
from vit_ptq_bench.tasks.errors import TaskError

STANDS_IN = provide_operators()

from mmcv.ops import RoIAlign, batched_nms, nms, roi_align  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction  # noqa: E402

import vit_ptq_bench.tasks.detection.openmmlab  # noqa: E402, F401  hands over deformable attention

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def _kept(boxes, scores, threshold, offset):
    """Greedy NMS by its definition; on equal scores the first box wins."""
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        if all(_overlap(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def _overlap(a, b, offset):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def _boxes(n, generator):
    # Not whole numbers: an overlap of exactly the threshold is a matter of the last digit.
    corner = generator.uniform(0, 60, (n, 2))
    return np.concatenate([corner, corner + generator.uniform(1, 40, (n, 2))], 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_is_its_definition(offset, threshold, device):
    for seed in range(8):
        generator = np.random.default_rng(seed)
        boxes = _boxes(80, generator)
        scores = generator.permutation(80) / 80
        kept = nms(
            torch.tensor(boxes, dtype=torch.float32, device=device),
            torch.tensor(scores, dtype=torch.float32, device=device),
            threshold,
            offset=offset,
        )[1]
        assert kept.tolist() == _kept(boxes, scores, threshold, offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_ties_leave_one_of_each_group(offset):
    generator = np.random.default_rng(0)
    boxes = np.repeat(_boxes(10, generator), 3, axis=0)
    scores = np.repeat(generator.permutation(10) / 10, 3)
    kept = nms(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32),
        0.5,
        offset=offset,
    )[1].numpy()
    wanted = np.array(_kept(boxes, scores, 0.5, offset))
    assert np.array_equal(np.sort(kept // 3), np.sort(wanted // 3))


def test_no_boxes_and_classes_apart():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.numel() == 0
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    scores = torch.tensor([0.9, 0.8])
    settings = {"type": "nms", "iou_threshold": 0.5}
    assert len(batched_nms(boxes, scores, torch.tensor([0, 1]), dict(settings))[1]) == 2
    assert len(batched_nms(boxes, scores, torch.tensor([1, 1]), dict(settings))[1]) == 1


def test_reference_vector():
    """Overlaps 1/3 and 9/11 by hand: with a threshold of 0.5 the second box goes, at 0.9 none."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.5)[1].tolist() == [0, 2]
    assert nms(boxes, scores, 0.9)[1].tolist() == [0, 1, 2]
    assert nms(boxes, scores, 0.3)[1].tolist() == [0]


def _bilinear(image, y, x):
    """Value between pixels as RoIAlign has it: zero beyond one pixel outside, else clamped."""
    height, width = image.shape[-2:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[0])
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy = 0.0 if top == height - 1 else y - top
    dx = 0.0 if left == width - 1 else x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def _pooled(features, roi, size, scale, samples, aligned):
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = roi[1:] * scale - shift
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    image = features[int(roi[0])]
    result = np.zeros((image.shape[0], size, size))
    for row in range(size):
        for column in range(size):
            values = [
                _bilinear(
                    image,
                    y1 + (row + (i + 0.5) / samples) * height / size,
                    x1 + (column + (j + 0.5) / samples) * width / size,
                )
                for i in range(samples)
                for j in range(samples)
            ]
            result[:, row, column] = np.mean(values, axis=0)
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_is_its_definition(aligned, scale, device):
    generator = np.random.default_rng(1)
    features = generator.normal(size=(2, 3, 12, 16))
    boxes = _boxes(6, generator) / 4 / scale
    rois = np.concatenate([generator.integers(0, 2, (6, 1)), boxes], axis=1)
    found = RoIAlign((3, 3), scale, sampling_ratio=2, aligned=aligned)(
        torch.tensor(features, dtype=torch.float32, device=device),
        torch.tensor(rois, dtype=torch.float32, device=device),
    )
    wanted = np.stack([_pooled(features, roi, 3, scale, 2, aligned) for roi in rois])
    np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_roi_align_gradient_and_no_rois():
    features = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 0.3, 0.7, 5.2, 6.1], [0, 2, 2, 7, 7]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, (2, 2), 1.0, 2, "avg", True), features
    )
    assert roi_align(features, rois[:0], (2, 2), 1.0, 2, "avg", True).shape == (0, 2, 2, 2)


def _gathered(maps, places, weights):
    """What one query of one head gathers [C]: points of each level, bilinear, nothing outside of a map."""
    total = np.zeros(maps[0].shape[-1])
    for level, points, shares in zip(maps, places, weights, strict=True):
        rows, columns, _ = level.shape
        for (x, y), share in zip(points * (columns, rows) - 0.5, shares, strict=True):
            for row, column in product(
                (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
            ):
                if 0 <= row < rows and 0 <= column < columns:
                    near = (1 - abs(y - row)) * (1 - abs(x - column))
                    total += share * near * level[row, column]
    return total


@pytest.mark.parametrize("device", DEVICES)
def test_deformable_attention_gathers_points_of_all_levels(device):
    generator = torch.Generator().manual_seed(0)
    shapes, starts = torch.tensor([[5, 7], [3, 4]]), torch.tensor([0, 35])
    value = torch.randn(2, 35 + 12, 4, 8, generator=generator)
    places = torch.rand(2, 6, 4, 2, 3, 2, generator=generator) * 1.4 - 0.2  # some are outside
    weights = torch.rand(2, 6, 4, 2, 3, generator=generator)
    given = [tensor.to(device) for tensor in (value, shapes, starts, places, weights)]
    found = MultiScaleDeformableAttnFunction.apply(*given, torch.tensor(64)).cpu()
    for image, query, head in product(range(2), range(6), range(4)):
        whole = value[image, :, head].double().numpy()
        maps = (whole[:35].reshape(5, 7, 8), whole[35:].reshape(3, 4, 8))
        wanted = _gathered(
            maps,
            places[image, query, head].double().numpy(),
            weights[image, query, head].double().numpy(),
        )
        ours = found[image, query].view(4, 8)[head].numpy()
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not STANDS_IN, reason="a compiled mmcv is installed")
def test_other_operators_say_their_name_when_called():
    operators = sys.modules[NAME]
    with pytest.raises(TaskError, match="deform_conv_forward"):
        operators.deform_conv_forward(1, 2)
    with pytest.raises(TaskError, match="max pooling"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), (2, 2), 1.0, 2, "max", True)
    assert provide_operators() is True  # once more changes nothing
    assert sys.modules[NAME] is operators
