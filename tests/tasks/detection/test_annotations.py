"""Annotations in all forms that people have: perfect detections have AP 100, or the file is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.tasks.detection.perfect import judge_perfect
from vit_ptq_bench.tasks.detection import metrics
from vit_ptq_bench.tasks.detection.data import CocoFiles, read_coco
from vit_ptq_bench.tasks.detection.segmentations import read_mask
from vit_ptq_bench.tasks.errors import TaskError

SIZES = ((64, 48), (48, 64))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Intervals are no matter here, and take longest."""
    monkeypatch.setattr(metrics, "RESAMPLES", 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate(SIZES):
        Image.new("RGB", size, (number, 90, 30)).save(folder / f"{number}.png")
    return folder


def _runs(size, x, y, w, h):
    mask = np.zeros(size[::-1], np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    code = coco_mask.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def _polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _object(number: int, image: int, category: int, box: list[float], segmentation: Any) -> Any:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": segmentation,
    }


@pytest.fixture
def data():
    """Two images with two objects each, of two classes; polygons and both forms of run lengths."""
    counts = [48 * 30 + 10, *[30, 18] * 9, 30, 8 + 24 * 48]
    return {
        "images": [
            {"id": n + 1, "file_name": f"{n}.png", "width": w, "height": h}
            for n, (w, h) in enumerate(SIZES)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            _object(1, 1, 3, [4, 5, 20, 10], [_polygon(4, 5, 20, 10)]),
            _object(2, 1, 7, [30, 10, 10, 30], {"size": [48, 64], "counts": counts}),
            _object(3, 2, 3, [10, 10, 20, 40], _runs(SIZES[1], 10, 10, 20, 40)),
            _object(4, 2, 7, [1, 1, 8, 8], [_polygon(1, 1, 8, 8)]),
        ],
    }


def _read(images, tmp_path, data) -> CocoFiles:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(data))
    return read_coco(path, images)


def _set(kind, position, **values):
    return lambda data: data[kind][position].update(values)


def _all(kind, key, values):
    def change(data):
        for entry, value in zip(data[kind], values, strict=True):
            entry[key] = value

    return change


def _without(kind, *keys):
    def change(data):
        for entry in data[kind]:
            for key in keys:
                entry.pop(key, None)

    return change


def _renamed_images(*names):
    """Give images other ids, and annotations the ids that they then belong to."""

    def change(data):
        for number, name in enumerate(names):
            data["images"][number]["id"] = name
        for entry in data["annotations"]:
            entry["image_id"] = names[entry["image_id"] - 1]

    return change


def _renamed_categories(first, second):
    def change(data):
        for entry, name in zip(data["categories"], (first, second), strict=True):
            entry["id"] = name
        for entry in data["annotations"]:
            entry["category_id"] = first if entry["category_id"] == 3 else second

    return change


def _repeat(kind, position, **values):
    return lambda data: data[kind].append({**data[kind][position], **values})


def _no_change(data):
    """Leave the data as they are."""


READ = [
    (_no_change, ""),
    (_all("annotations", "id", (0, 1, 2, 3)), "id missing or not a whole number above 0"),
    (_all("annotations", "id", (-1, -2, -3, -4)), "id missing or not a whole number above 0"),
    (_all("annotations", "id", ("a", "b", "c", "d")), "no whole number"),
    (_all("annotations", "id", (0.5, 1.5, 2.5, 3.5)), "no whole number"),
    (_all("annotations", "id", (1, 1, 1, 1)), "id that another one has"),
    (_all("annotations", "id", (10**400, 2**63, 2**64, 4)), "id missing or not a whole number"),
    (_all("annotations", "id", (None, True, [], float("nan"))), "id missing"),
    (_without("annotations", "id", "area", "iscrowd"), "computed from mask or box"),
    (_without("images", "width", "height"), "taken from the image file"),
    (_set("images", 0, width=0, height=0), "taken from the image file"),
    (_set("images", 0, width=64.0), ""),
    (_renamed_images(0, 5), ""),
    (_renamed_images(-1, 5), "image ids"),
    (_renamed_images("b", "a"), "image ids"),
    (_renamed_images(2**60, 2**60 + 1), "image ids"),
    (_renamed_categories(0, -4), "order of the list"),
    (_renamed_categories("x", "y"), ""),
    (_renamed_categories(90, 5), "order of the list 'categories'"),
    (_set("categories", 1, name="cat"), "several categories have one name"),
    (_repeat("annotations", 0), "repeated annotation left out: annotations[4]"),
    (_repeat("images", 0), "repeated image entry left out"),
    (_repeat("images", 0, id=9), "under several ids"),
    (
        _all("annotations", "area", (0, -1, float("inf"), float("nan"))),
        "area missing or impossible",
    ),
    (_all("annotations", "area", ("7", 1e300, None, 10**400)), "area missing or impossible"),
    (_all("annotations", "iscrowd", (None, False, 0.0, 0)), "iscrowd missing, taken as 0"),
    (_set("annotations", 0, bbox=[4, 5, 0, 10]), "bbox of no size: annotations[0]"),
    (_set("annotations", 0, bbox=[70, 5, 9, 10], segmentation=[]), "bbox outside of its image"),
    (_set("annotations", 0, bbox=[50, 5, 30, 10], segmentation=[]), "reaches out of its image"),
    (_set("annotations", 0, segmentation=[_polygon(4, 5, 20, 10), [9, 9]]), "fewer than three"),
    (_set("annotations", 0, segmentation=[[4, 5, 24, 15], _polygon(4, 5, 20, 10)]), "fewer than"),
    (_set("annotations", 0, segmentation=_polygon(4, 5, 20, 10)), "without a list around it"),
    (_set("annotations", 0, segmentation=[[4, 5, 24, 5, 14, 5]]), "masks without a pixel"),
    (_set("annotations", 0, segmentation=[]), "no mask, so that it neither counts"),
    (_set("annotations", 0, segmentation={}), "no mask, so that it neither counts"),
    (_set("annotations", 0, segmentation=None), "no mask, so that it neither counts"),
    (_set("annotations", 1, segmentation={"size": [48, 64], "counts": [3072]}), "without a pixel"),
]
"""A change of a file that is read, and what is said of it."""


@pytest.mark.parametrize(("change", "said"), READ)
def test_perfect_detections_have_ap_100_and_what_was_changed_is_said(
    images, tmp_path, data, change, said
):
    change(data)
    files = _read(images, tmp_path, data)
    found = judge_perfect(files)
    assert found.metrics["box_ap"] == pytest.approx(100)
    assert found.metrics["mask_ap"] == pytest.approx(100)
    assert found.outcomes.all()
    assert said in " ".join(files.notes) and bool(said) == bool(files.notes)
    assert [entry["id"] for entry in files.data["annotations"]] == [
        *range(1, len(files.data["annotations"]) + 1)
    ]


NAN, INFINITE = float("nan"), float("inf")

REFUSED = [
    (_set("annotations", 0, bbox=[1, 2, NAN, 4]), "no bbox of four finite numbers"),
    (_set("annotations", 0, bbox=[1, 2, INFINITE, 4]), "no bbox of four finite numbers"),
    (_set("annotations", 0, bbox=[1, 2, 10**400, 4]), "no bbox of four finite numbers"),
    (_set("annotations", 0, bbox=["1", "2", "3", "4"]), "no bbox of four finite numbers"),
    (_set("annotations", 0, bbox=[1, 2, 3]), "no bbox of four finite numbers"),
    (_set("annotations", 0, bbox=[1, 2, 1e9, 4]), "bbox far outside"),
    (_set("annotations", 0, iscrowd=2), "iscrowd that is neither 0 nor 1"),
    (_set("annotations", 0, iscrowd="0"), "iscrowd that is neither 0 nor 1"),
    (_set("annotations", 0, image_id=[1]), r"unknown image_id: annotations\[0\] \(\[1\]\)"),
    (_set("annotations", 0, image_id="1"), "unknown image_id"),
    (_set("annotations", 0, category_id=5), "unknown category_id"),
    (_without("annotations", "category_id"), r"annotations\[2\] \(None\) and 1 more"),
    (_set("annotations", 0, segmentation=7), "neither polygons nor run lengths"),
    (_set("annotations", 0, segmentation=[[1, 2, 3, 4, 5]]), "odd number of coordinates"),
    (_set("annotations", 0, segmentation=[[1, 2, 3, 4, 5, NAN]]), "no list of finite numbers"),
    (_set("annotations", 0, segmentation=[[1e12, 2, 3, 4, 5, 6]]), "polygon far outside"),
    (_set("annotations", 0, segmentation=[_polygon(50, 40, 9, 5)]), "do not meet"),
    (_set("annotations", 0, segmentation={"size": [64, 48], "counts": [0, 3072]}), "another size"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": [9, 9]}), "do not add up"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": [-1, 3073]}), "do not add"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": [1.0]}), "neither text nor"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": "o"}), "compressed"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": "zzz\x7f"}), "compressed"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": "é"}), "compressed"),
    (_set("annotations", 0, segmentation={"size": [48, 64], "counts": "PPPPPPPPPP0"}), "compres"),
    (_all("annotations", "bbox", [[0.1, 0.1, 0.3, 0.3]] * 4), "shares of the image"),
    (_all("annotations", "bbox", [[20, 20, 45, 45]] * 4), "look like corners"),
    (_set("images", 0, width=48, height=64), "mask of another size than its image"),
    (_set("images", 0, width=-64), "no whole number of pixels"),
    (_set("images", 0, width=NAN), "no whole number of pixels"),
    (_set("images", 0, width="64"), "no whole number of pixels"),
    (_set("images", 0, width=10**9), "image of more than"),
    (_set("images", 0, file_name="\ud800.png"), "no file_name that a file can have"),
    (_set("images", 0, file_name="a\0.png"), "no file_name that a file can have"),
    (_set("images", 0, file_name="a" * 300), "no file_name that a file can have"),
    (_set("images", 0, file_name=7), "no file_name that a file can have"),
    (_without("images", "file_name"), "no file_name"),
    (_without("images", "id"), "no id that is a number or a text: images.0., images.1."),
    (_set("images", 0, id=2), "id that another image has: images.1."),
    (_set("categories", 0, id=7), "id that another category has: categories.1."),
    (_set("categories", 0, name=None), "no name: categories.0."),
    (lambda data: data["annotations"].append([]), "no object: annotations.4."),
    (lambda data: data["images"].append("3.png"), "no object: images.2."),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_not_clear_is_refused_with_its_place(images, tmp_path, data, change, message):
    change(data)
    with pytest.raises(TaskError, match=message):
        _read(images, tmp_path, data)


def test_a_size_other_than_that_of_the_pixels_is_refused_before_a_run(images, tmp_path, data):
    data["annotations"] = [data["annotations"][0]]  # a polygon, which fits both ways
    data["images"][0].update(width=48, height=64)
    with pytest.raises(TaskError, match="0.png is 48 x 64 .* has 64 x 48; they are swapped"):
        judge_perfect(_read(images, tmp_path, data))


def test_a_file_of_which_many_objects_can_never_be_found_is_refused(images, tmp_path, data):
    data["annotations"] *= 2
    for number, entry in enumerate(data["annotations"]):
        data["annotations"][number] = entry | {"id": number + 1}
    for number in range(4):
        data["annotations"][number]["bbox"] = [4, 5, 0, 0]
    with pytest.raises(TaskError, match="too many of the 8 objects.*no size: annotations.0."):
        _read(images, tmp_path, data)


def test_masks_of_few_objects_are_not_judged_and_that_is_said(images, tmp_path, data):
    for entry in data["annotations"][:3]:
        entry["segmentation"] = []
    files = _read(images, tmp_path, data)
    found = judge_perfect(files)
    assert not files.has_masks and "mask_ap" not in found.metrics
    assert found.metrics["box_ap"] == pytest.approx(100)
    assert "mask AP is not judged" in files.notes[0]


def test_images_that_show_nothing_have_no_average_precision(images, tmp_path, data):
    for entry in data["annotations"]:
        entry["iscrowd"] = 1
    with pytest.raises(TaskError, match="none of the 2 images to judge on shows an object"):
        judge_perfect(_read(images, tmp_path, data))


def test_the_file_itself_is_named_where_it_is_no_json(images, tmp_path, data):
    path = tmp_path / "val.json"
    text = json.dumps(data)
    for content, message in (
        ('{"images":' + "[" * 100_000, "too deeply nested"),
        ('{"images": [], "images": [1]}', "the key 'images' stands twice"),
        ('{"images": ' + "9" * 5000 + "}", "not readable as JSON"),
        (text[:200], "may be truncated"),
        ("", "not readable as JSON"),
        ("[]", "holds no object"),
    ):
        path.write_text(content)
        with pytest.raises(TaskError, match=message):
            read_coco(path, images)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert read_coco(path, images).classes == ("cat", "dog")


def test_compressed_run_lengths_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.5, 0.999, 1) * 6:
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        mask = np.asfortranarray((rng.random((height, width)) < share).astype(np.uint8))
        code = coco_mask.encode(mask)
        value = {"size": [height, width], "counts": code["counts"].decode("ascii")}
        found = read_mask(value, height, width)
        assert found.area == mask.sum()
        assert (found.value is None) == (not mask.any())
