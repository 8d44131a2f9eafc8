"""The scenes: what is annotated is what is drawn, in COCO's form."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.scene_rendering import (
    LEAST_VISIBLE,
    SIZE,
    compose,
    to_coco,
    write_scenes,
)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(5)
    return [compose(source_pools()[0], rng) for _ in range(120)]


def test_the_seed_decides():
    pool = source_pools()[0]
    first, again = (compose(pool, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.picture, again.picture)
    assert first.picture.dtype == np.uint8 and first.picture.shape == (SIZE, SIZE, 3)
    assert not np.array_equal(first.picture, compose(pool, np.random.default_rng(4)).picture)


def test_masks_are_what_is_visible(scenes):
    overlapping = 0
    for scene in scenes:
        total = np.zeros((SIZE, SIZE), dtype=int)
        for instance in scene.instances:
            total += instance.mask
            x, y, width, height = instance.box
            inside = np.zeros_like(instance.mask)
            inside[y : y + height, x : x + width] = True
            assert not (instance.mask & ~inside).any()
            assert instance.mask[y].any() and instance.mask[y + height - 1].any()
            filled = instance.mask.sum() / (width * height)
            overlapping += filled < 0.85 and not instance.crowd  # a whole card fills 93 %
        assert total.max() <= 1
    assert overlapping > 10
    counts = [len(scene.instances) for scene in scenes]
    assert min(counts) >= 1 and max(counts) >= 6


def test_a_card_is_seen_by_half_where_no_heap_lies_on_it(scenes):
    for scene in scenes:
        if any(instance.crowd for instance in scene.instances):
            continue
        for instance in scene.instances:
            _, _, width, height = instance.box
            assert instance.mask.sum() >= LEAST_VISIBLE * 0.8 * width * height * 0.93


def test_all_sizes_classes_and_crowds_occur(scenes):
    instances = [i for scene in scenes for i in scene.instances]
    areas = [i.mask.sum() for i in instances if not i.crowd]
    bands = Counter(np.digitize(areas, [32**2, 96**2]).tolist())
    assert min(bands[0], bands[1], bands[2]) > 20
    assert {i.label for i in instances} == set(range(10))
    assert 2 <= sum(i.crowd for i in instances) <= 25


def test_digits_can_be_seen_on_their_cards(scenes):
    """A card is not of one colour: the digit on it stands out."""
    for scene in scenes[:20]:
        for instance in scene.instances:
            colours = scene.picture[instance.mask].astype(float)
            assert colours.std(axis=0).max() > 10


def test_files_are_read_by_pycocotools(tmp_path, scenes, capsys):
    train, test = source_pools()
    path = write_scenes(tmp_path, train, 12, seed=1)
    coco = COCO(path)
    rng = np.random.default_rng(1)
    for image in coco.loadImgs(coco.getImgIds()):
        scene = compose(train, rng)
        assert np.array_equal(np.asarray(Image.open(tmp_path / image["file_name"])), scene.picture)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == len(scene.instances)
        for annotation, instance in zip(annotations, scene.instances, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), instance.mask)
            assert annotation["category_id"] == instance.label + 1
            assert annotation["area"] == instance.mask.sum()
            assert annotation["iscrowd"] == instance.crowd
            assert tuple(annotation["bbox"]) == instance.box
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [str(d) for d in range(10)]
    assert not set(train.indices) & set(test.indices)
    assert json.loads(json.dumps(to_coco(scenes[:2], ["a.png", "b.png"])))
