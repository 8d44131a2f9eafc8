"""Descriptions of networks: they build what they were made of, and nothing that a file had better not."""

import json

import pytest
import timm
import torch

from vit_ptq_bench.tasks import Network, TaskError, classification

MODEL = "deit_tiny_distilled_patch16_224"
ARGUMENTS = {"img_size": 64, "num_classes": 3, "depth": 2}


@pytest.fixture(scope="module")
def described():
    module = classification.create_untrained(MODEL, arguments=ARGUMENTS)
    return module, classification.describe_timm(MODEL, ARGUMENTS, module)


def test_a_description_survives_json_and_builds_the_same_network(described):
    module, network = described
    again = Network.from_dict(json.loads(json.dumps(network.to_dict())))
    assert again == network
    built = classification.build_timm(again)
    built.load_state_dict(module.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(built(images), module.eval()(images))
    assert classification.preprocessing(built)[0] == classification.preprocessing(module)[0]


def test_preprocessing_is_the_file_s_and_not_that_of_the_installed_timm(described):
    _, network = described
    told = {**network.preprocessing, "crop_pct": 0.5, "mean": [0.1, 0.2, 0.3]}
    built = classification.build_timm(Network("timm", MODEL, ARGUMENTS, told))
    config, _ = classification.preprocessing(built)
    assert config["crop_pct"] == 0.5 and tuple(config["mean"]) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"builder": "mmdet"}, "is none of this task's"),
        ({"architecture": "deit_huge"}, "no architecture 'deit_huge'"),
        ({"architecture": "hf-hub:someone/vit"}, "no architecture 'hf-hub:"),
        ({"arguments": {"checkpoint_path": "evil.pt"}}, "cannot have checkpoint_path"),
        ({"arguments": {"pretrained": True}}, "cannot have pretrained"),
        ({"arguments": {"depth": -1.5}}, "timm does not build it"),
        ({"preprocessing": {}}, "wrong or incomplete"),
        ({"preprocessing": {"mean": [0, 0]}}, "wrong or incomplete: .*mean"),
        ({"preprocessing": {"more": 1}}, "wrong or incomplete"),
    ],
)
def test_what_a_file_must_not_ask_for_is_refused(described, change, message):
    _, network = described
    data = network.to_dict() | change
    if data["preprocessing"] and "preprocessing" in change:
        data["preprocessing"] = {**network.preprocessing, **change["preprocessing"]}
    with pytest.raises(TaskError, match=message):
        classification.build_timm(Network.from_dict(data))


def test_a_network_that_is_larger_than_its_file_is_not_built(described):
    _, network = described
    huge = Network("timm", MODEL, {"embed_dim": 192_000, "depth": 12}, network.preprocessing)
    with pytest.raises(TaskError, match="more than the file can hold"):
        classification.build_timm(huge, at_most=10**7)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"builder": "timm"},
        {"builder": 3, "architecture": "a", "arguments": {}, "preprocessing": {}},
        {"builder": "timm", "architecture": "a", "arguments": {"x": {}}, "preprocessing": {}},
        {"builder": "timm", "architecture": "a", "arguments": [], "preprocessing": {}},
    ],
)
def test_what_describes_no_network_is_refused(data):
    with pytest.raises(TaskError, match="network"):
        Network.from_dict(data)


def test_the_architecture_is_one_of_timm_s_own_names(described):
    assert described[1].architecture == timm.get_pretrained_cfg(MODEL).architecture + ".fb_in1k"
