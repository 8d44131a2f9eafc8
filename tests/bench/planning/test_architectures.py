"""Support of a model is known before anything is loaded: in the plan, and in the list of models."""

import json
import tempfile

import pytest
import timm
from PIL import Image

from tests.methods.quantization.model.test_families import ToyFamily
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.architectures import architecture_problem
from vit_ptq_bench.bench.planning.plan import build_plan, expand
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.methods.quantization.model.families import FAMILIES, register_family
from vit_ptq_bench.tasks import TASKS, TaskOptions, imagenet
from vit_ptq_bench.tasks.errors import TaskError

KNOWN = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Nothing is kept from other tests, and there are few models to look at."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(imagenet, "FAMILIES", ("vit_tiny_patch16_224*", "vit_relpos_small*"))


def task(**options):
    return TASKS.get("imagenet")(TaskOptions(**options))


def suite(*models):
    return Suite(name="s", task="imagenet", models=models, bits=("W4A4",), methods=("minmax",))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            "cait_xxs24_224",
            "cannot quantize a Cait: it mixes attention maps of heads .* Supported: .*timm BEiT",
        ),
        ("vit_small_patch16_18x2_224", "blocks.0 is a ParallelThingsBlock, expected Block"),
        ("resnet18", "cannot quantize a ResNet"),
    ],
)
def test_an_architecture_that_no_family_knows_is_refused_in_words(model, why):
    with pytest.raises(BenchError, match=f"models: {model}: .*{why}"):
        expand(suite(model), TaskOptions())


def test_arguments_of_the_users_count():
    assert architecture_problem(task(), KNOWN) is None
    gated = task(model_args={KNOWN: {"global_pool": "map"}})
    assert "no role is known for attn_pool" in architecture_problem(gated, KNOWN)
    with pytest.raises(TaskError, match="does not build it with depht"):
        architecture_problem(task(model_args={KNOWN: {"depht": 3}}), KNOWN)


def test_tasks_that_cannot_say_refuse_nothing_and_papers_models_are_not_built(monkeypatch):
    def refuse(self, model):
        raise AssertionError(model)

    monkeypatch.setattr(imagenet.ImageNet, "skeleton", refuse)
    assert all(architecture_problem(task(), model) is None for model in imagenet.REFERENCES)
    assert architecture_problem(TASKS.get("coco")(), "mask_rcnn_swin_t", "full") is None
    for name, model in (("fashion", "vit_mini"), ("scenes", "mask_rcnn_swin_mini")):
        other = TASKS.get(name)()
        assert architecture_problem(other, model) is None
        with pytest.raises(TaskError, match="does not build models without their weights"):
            other.skeleton(model)


def test_what_was_found_is_kept_for_each_architecture(monkeypatch):
    built = []
    build = imagenet.ImageNet.skeleton
    monkeypatch.setattr(
        imagenet.ImageNet, "skeleton", lambda self, model: built.append(model) or build(self, model)
    )
    words = {architecture_problem(task(), "resnet18") for _ in range(2)}
    assert len(words) == 1 and None not in words
    assert architecture_problem(task(), KNOWN) is None
    assert (
        architecture_problem(task(), KNOWN.partition(".")[0]) is None
    )  # the same, without its tag
    assert built == ["resnet18", KNOWN]


def test_a_family_from_elsewhere_counts_and_nothing_is_kept_then():
    assert architecture_problem(task(), "resnet18") is not None
    register_family(ToyFamily)  # takes whatever no family of ours knows
    try:
        assert architecture_problem(task(), "resnet18") is None
    finally:
        FAMILIES.module_dict.pop("a-toy")
    assert architecture_problem(task(), "resnet18") is not None


def test_a_glob_leaves_out_what_is_not_supported_and_says_so():
    said = []
    models = expand(suite("vit_*"), TaskOptions(), said.append).models
    assert KNOWN in models and not any("relpos" in model for model in models)
    assert any("vit_relpos_small_patch16_224.sw_in1k" in sentence for sentence in said)
    with pytest.raises(BenchError, match=r"vit_rel\*: no model is supported; vit_relpos"):
        expand(suite("vit_rel*"), TaskOptions())


def test_a_glob_of_models_of_no_family_says_so_and_why():
    words = (
        r"xcit_nano\*: [0-9]+ models match, of no family .*cannot quantize a Xcit: it attends over"
    )
    with pytest.raises(BenchError, match=words):
        expand(suite("xcit_nano*"), TaskOptions())
    with pytest.raises(BenchError, match=r"no model matches 'nosuch\*'"):
        expand(suite("nosuch*"), TaskOptions())
    # Not listed here, but known to a family: as any other glob.
    assert expand(suite("deit_tiny_distilled*"), TaskOptions()).models == [
        "deit_tiny_distilled_patch16_224.fb_in1k"
    ]


def test_backbones_without_a_classifier_are_marked_in_the_list(monkeypatch, capsys):
    patterns = ("vit_small_patch14_reg4*", "vit_base_patch32_clip_224.*")
    monkeypatch.setattr(imagenet, "FAMILIES", (*imagenet.FAMILIES, *patterns))
    assert main(["list", "models", "--json"]) == 0
    remarks = {row["model"]: row["remark"] for row in json.loads(capsys.readouterr().out)["models"]}
    without = "a backbone without a classifier"
    assert remarks["vit_small_patch14_reg4_dinov2.lvd142m"] == without
    assert remarks["vit_base_patch32_clip_224.openai"] == f"{without} (512 outputs of an embedding)"
    assert remarks["vit_base_patch32_clip_224.openai_ft_in1k"] == ""
    assert remarks[KNOWN] == remarks["vit_mini"] == ""


def test_all_of_timms_modules_with_families_is_listed(monkeypatch):
    monkeypatch.undo()
    modules = (
        "vision_transformer",
        "deit",
        "beit",
        "eva",
        "swin_transformer",
        "swin_transformer_v2",
    )
    classifiers = {
        name
        for module in modules
        for name in timm.list_models(module=module, pretrained=True)
        if timm.get_pretrained_cfg(name).num_classes == imagenet.IMAGENET_OUTPUTS
    }
    assert "flexivit_small.1200ep_in1k" in classifiers
    assert classifiers <= set(task().model_names())


def test_a_plan_is_refused_before_any_image_is_looked_for():
    with pytest.raises(BenchError, match="cannot quantize a Cait"):
        build_plan(suite("cait_xxs24_224"), TaskOptions())
    with pytest.raises(TaskError, match="data"):
        build_plan(suite(KNOWN), TaskOptions())


def test_the_list_of_supported_models(capsys):
    assert main(["list", "models", "--supported"]) == 0
    supported = capsys.readouterr().out
    assert main(["list", "models"]) == 0
    every = capsys.readouterr().out
    assert KNOWN in supported and "vit_mini" in supported and "relpos" not in supported
    assert "vit_relpos_small_patch16_224.sw_in1k" in every
    assert main(["list", "methods", "--supported"]) == 2
    assert "bench list models --supported" in capsys.readouterr().err


def test_a_command_on_one_model_refuses_it_too(tmp_path, capsys):
    for place in ("train", "val"):
        (tmp_path / place / "n01440764").mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(tmp_path / place / "n01440764" / "a.png")
    words = ["inspect", "imagenet", "cait_xxs24_224", "--data-dir", str(tmp_path)]
    assert main(words) == 2
    assert "cannot quantize a Cait" in capsys.readouterr().err
