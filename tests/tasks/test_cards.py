"""Cards of tasks: what listing and planning ask for needs neither torch nor what brings it along."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from vit_ptq_bench.tasks import TASKS, Task, TaskOptions

HEAVY = ("torch", "torchvision", "timm", "mmdet", "mmcv")
FOLDER = Path(__file__).parents[2] / "tasks"

PRELUDE = f"""
import sys
from pathlib import Path
from vit_ptq_bench.tasks import TASKS, TaskOptions

def light():
    assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)

tasks = TASKS.module_dict
assert TASKS.broken == {{}} and {{"coco", "fashion", "imagenet", "scenes"}} <= set(tasks)
light()
"""

BUNDLED = """
for name in ("fashion", "scenes"):
    task = tasks[name]()
    for model in task.model_names():
        assert task.knows_model(model) and task.weights_id(model).startswith("sha256:")
    assert task.data_id().startswith("sha256:")
light()
"""

IMAGENET = """
from vit_ptq_bench.tasks.imagenet import REFERENCES

root = Path(sys.argv[1])
task = tasks["imagenet"](TaskOptions(data_dir=root))
for model in REFERENCES:
    assert task.knows_model(model) and task.weights_id(model) == f"timm:{model}"
    assert task.knows_model(model.partition(".")[0])
assert task.data_id().startswith("sha256:") and task.calibration_id(1, 0) is None
assert task.data_notes() == ("1 images in val: 1 class folders, WordNet ids",)
task = tasks["imagenet"](TaskOptions(data_dir=root, checkpoint=root / "weights"))
assert task.weights_id("vit_tiny_patch16_224").startswith("sha256:")
light()
"""

COCO = """
import json

root = Path(sys.argv[1])
from PIL import Image

Image.new("RGB", (8, 6)).save(root / "val" / "b.png")
images = [{"id": 1, "file_name": "b.png", "width": 8, "height": 6}]
cat = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 3]}
data = {"images": images, "annotations": [cat], "categories": [{"id": 1, "name": "cat"}]}
(root / "annotations").mkdir()
(root / "annotations" / "val.json").write_text(json.dumps(data))
task = tasks["coco"](TaskOptions(data_dir=root, checkpoint=root / "weights"))
for model in task.model_names():
    assert task.knows_model(model) and task.weights_id(model).startswith("sha256:")
assert task.data_id().startswith("sha256:")
light()
"""


@pytest.fixture
def root(tmp_path):
    """An image for evaluation, none for calibration, and a file that could be weights."""
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "val" / "n01440764" / "a.jpg").write_bytes(b"no decoder looks at it")
    (tmp_path / "weights").write_bytes(b"nor at this")
    return tmp_path


@pytest.mark.parametrize("calls", [BUNDLED, IMAGENET, COCO], ids=["bundled", "imagenet", "coco"])
def test_cards_do_without_torch(calls, root):
    command = [sys.executable, "-c", PRELUDE + calls, str(root)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_names_that_timm_is_not_asked_for_are_names_that_it_has():
    import timm

    from vit_ptq_bench.tasks.imagenet import REFERENCES

    for model in REFERENCES:
        assert timm.is_model(model) and timm.is_model(model.partition(".")[0])
        assert timm.get_pretrained_cfg(model).tag == model.partition(".")[2]


def test_mmdet_and_mmcv_come_through_one_door():
    """Whoever imported them before the operators are in place would fail where mmcv is not compiled."""
    importers = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"mmdet", "mmcv"}:
                importers.add(path.relative_to(FOLDER).as_posix())
    assert importers == {"detection/openmmlab.py"}


def test_preloading_imports_what_a_run_needs():
    (module,) = TASKS.get("coco").preload
    code = f"import sys, {module}\nassert {{'mmdet.models', 'mmcv.ops'}} <= set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["coco", "fashion", "imagenet", "scenes"])
def test_titles_are_those_of_metrics_beside_the_first(name):
    task = TASKS.get(name)
    assert task.metric_titles and set(task.metric_titles) <= set(task.metrics[1:])


OF_SUITES = {"checkpoints", "model_args"}
"""What suites say of single models has no option."""


def test_every_option_has_help_and_a_word_for_its_value():
    fields = [field for field in dataclasses.fields(TaskOptions) if field.name not in OF_SUITES]
    for field in fields:
        assert field.metadata["help"] and field.metadata["help"][0].islower()
        assert isinstance(field.default, bool) == (field.metadata["metavar"] is None)


def test_a_task_that_lacks_a_method_cannot_be_built():
    class Half(Task):
        name = "half"

        def model_names(self):
            return []

    with pytest.raises(TypeError, match="abstract.*evaluate"):
        Half()
