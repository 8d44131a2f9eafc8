"""The licence of a checkpoint is what its file states, and nobody's guess."""

import pytest
import torch
from safetensors.torch import save_file

from vit_ptq_bench.tasks import TASKS, TaskOptions

MODELS = {
    "fashion": ("vit_mini", "Apache-2.0"),
    "scenes": ("mask_rcnn_swin_mini", "Apache-2.0"),
    "imagenet": ("vit_tiny_patch16_224", "apache-2.0"),
    "coco": ("mask_rcnn_swin_t", None),
}
"""Task -> a model, and the licence of its weights where there is no checkpoint."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
        ({"format": "pt", "licence": "mit"}, "mit"),
        ({"license": ""}, None),
        (None, None),
    ],
)
def test_a_checkpoint_states_its_licence(tmp_path, name, metadata, licence):
    model, _ = MODELS[name]
    path = tmp_path / "own.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata=metadata)
    assert TASKS.get(name)(TaskOptions(checkpoint=path)).licence(model) == licence


@pytest.mark.parametrize("name", MODELS)
def test_other_files_state_none_and_published_weights_have_theirs(tmp_path, name):
    model, published = MODELS[name]
    torch.save({"license": "mit"}, tmp_path / "own.pth")
    task = TASKS.get(name)
    assert task(TaskOptions(checkpoint=tmp_path / "own.pth")).licence(model) is None
    assert task(TaskOptions()).licence(model) == published
