"""A detector that cannot be quantized or judged is refused by the plan, without data and weights."""

import tempfile

import pytest

from tests.small_detectors import SWIN, small_config, write_config
from vit_ptq_bench.bench.cli import main
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.architectures import architecture_problem
from vit_ptq_bench.bench.planning.plan import expand
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.tasks import TASKS, TaskOptions, coco
from vit_ptq_bench.tasks.errors import TaskError


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Nothing is kept from other tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def problem(folder, content, scope=None):
    path = write_config(folder / "own.py", content)
    return architecture_problem(TASKS.get("coco")(), str(path), scope)


def changed(kind, **parts):
    content = small_config(kind)
    for name, change in parts.items():
        content["model"][name] = content["model"][name] | change
    return content


RESNET = {
    "type": "ResNet",
    "depth": 18,
    "num_stages": 2,
    "strides": (1, 2),
    "dilations": (1, 1),
    "out_indices": (0, 1),
}


def test_supported_detectors_pass_in_both_scopes(tmp_path):
    for scope in (None, "backbone", "full"):
        assert problem(tmp_path, small_config("fcos"), scope) is None


def test_a_backbone_that_no_family_knows_is_refused_in_words(tmp_path):
    content = small_config("retinanet")
    content["model"] |= {"backbone": RESNET}
    content["model"]["neck"] = content["model"]["neck"] | {"in_channels": [64, 128]}
    found = problem(tmp_path, content)
    assert "cannot quantize a RetinaNet. Supported: mmdet detectors with a Swin backbone" in found


def test_a_head_without_roles_is_refused_in_scope_full_alone(tmp_path):
    content = changed("retinanet", bbox_head={"type": "RetinaSepBNHead", "num_ins": 3})
    assert problem(tmp_path, content, "backbone") is None
    found = problem(tmp_path, content, "full")
    assert "in scope full no role is known for bbox_head, a RetinaSepBNHead" in found
    assert "scope backbone quantizes the backbone alone" in found
    path = str(tmp_path / "own.py")
    suite = Suite(
        name="s",
        task="coco",
        models=(path,),
        bits=("W4A4",),
        methods=("minmax",),
        scopes=("backbone", "full"),
    )
    with pytest.raises(BenchError, match="no role is known for bbox_head"):
        expand(suite, TaskOptions())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (changed("fcos", test_cfg={"nms": {"type": "soft_nms"}}), "needs soft_nms of mmcv's"),
        (
            changed("fcos", data_preprocessor={"type": "BatchSyncRandomResize"}),
            "mmdet cannot build this detector",
        ),
        (changed("fcos", backbone=dict.fromkeys(SWIN) | {"type": "Swim"}), "cannot build"),
        ({"model": {"type": "FCOS", "backbone": SWIN}}, "describes no detector"),
        (
            small_config("fcos") | {"test_pipeline": [{"type": "RandomFlip"}]},
            "test_pipeline has the step 'RandomFlip'",
        ),
    ],
)
def test_what_could_not_be_judged_is_refused_too(tmp_path, content, why):
    with pytest.raises(TaskError, match=why):
        problem(tmp_path, content)


def test_a_preprocessor_of_another_kind_is_refused(tmp_path):
    content = small_config("fcos")
    content["model"]["data_preprocessor"] = {"type": "mmengine.ImgDataPreprocessor"}
    with pytest.raises(TaskError, match="data_preprocessor is a ImgDataPreprocessor; .* name that"):
        problem(tmp_path, content)


def test_a_dry_run_says_it_without_data_and_weights(tmp_path, capsys):
    path = write_config(
        tmp_path / "own.py", changed("atss", bbox_head={"type": "RetinaSepBNHead", "num_ins": 3})
    )
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'name = "s"\ntask = "coco"\nmodels = ["{path}"]\nbits = ["W4A4"]\nmethods = ["minmax"]\n'
    )
    words = ["run", str(suite), "--dry-run", "--scope", "full", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "no role is known for bbox_head" in said and "data-dir" not in said


def test_a_config_that_changes_is_looked_at_again(tmp_path, monkeypatch):
    built = []
    build = coco.Coco.skeleton
    monkeypatch.setattr(
        coco.Coco, "skeleton", lambda self, model: built.append(model) or build(self, model)
    )
    assert [problem(tmp_path, small_config("gfl")) for _ in range(2)] == [None, None]
    assert len(built) == 1
    with pytest.raises(TaskError, match="needs soft_nms"):
        problem(tmp_path, changed("gfl", test_cfg={"nms": {"type": "soft_nms"}}))
