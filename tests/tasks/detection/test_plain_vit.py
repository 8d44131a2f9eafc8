"""A plain ViT as a detector's backbone: one map, for images of any size."""

import pytest
import torch
from torch import nn

from tests.small_detectors import VIT, small_config, write_config
from vit_ptq_bench.tasks.detection.models import build_detector, read_config
from vit_ptq_bench.tasks.detection.plain_vit import SimpleFeaturePyramid, TimmViT
from vit_ptq_bench.tasks.errors import TaskError


def backbone(**changes):
    told = {name: value for name, value in VIT.items() if name != "type"}
    return TimmViT(**(told | changes)).eval()


@torch.no_grad()
def test_its_map_is_timms_tokens_in_rows_and_columns():
    vit = backbone()
    images = torch.randn(2, 3, 64, 64)
    (found,) = vit(images)
    assert found.shape == (2, 32, 4, 4)
    tokens = vit.vit.forward_features(images)
    assert torch.equal(found[:, :, 2, 3], tokens[:, 2 * 4 + 3])


@torch.no_grad()
def test_positions_are_resampled_and_images_padded_with_zeros_to_whole_patches():
    vit = backbone()
    nn.init.normal_(vit.vit.pos_embed)
    images = torch.randn(1, 3, 90, 40)
    (found,) = vit(images)
    assert found.shape == (1, 32, 6, 3)
    padded = nn.functional.pad(images, (0, 8, 0, 6))
    torch.testing.assert_close(found, vit(padded)[0])


@torch.no_grad()
def test_the_pyramid_has_maps_of_all_strides_and_takes_one():
    neck = SimpleFeaturePyramid(32, 16, 5)
    maps = neck([torch.randn(1, 32, 6, 4)])
    sides = [(24, 16), (12, 8), (6, 4), (3, 2), (2, 1)]
    assert [tuple(x.shape) for x in maps] == [(1, 16, *side) for side in sides]
    with pytest.raises(ValueError, match="4 or more, got 3"):
        SimpleFeaturePyramid(32, 16, 3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architecture": "vit_tiny"}, "timm has no architecture 'vit_tiny'"),
        ({"architecture": "hf-hub:a/b"}, "timm has no architecture 'hf-hub:a/b'"),
        (
            {"architecture": "beit_base_patch16_224"},
            "beit_base_patch16_224 cannot be built as a plain",
        ),
        ({"architecture": "vit_relpos_small_patch16_224"}, "cannot be built as a plain ViT"),
        ({"arguments": {"depht": 3}}, "cannot be built as a plain ViT: .*depht"),
        ({"arguments": {"class_token": True}}, "must leave out class_token"),
        ({"arguments": {"pretrained": True}}, "must leave out pretrained"),
    ],
)
def test_what_gives_no_map_is_refused_before_it_is_built(tmp_path, changes, why):
    if "arguments" not in changes:
        changes = {"arguments": {}} | changes
    content = small_config("fcos_vit")
    content["model"]["backbone"] = VIT | changes
    path = write_config(tmp_path / "own.py", content)
    with pytest.raises(TaskError, match=f"mmdet cannot build this detector.*{why}"):
        build_detector(read_config(path))
