"""The bundled detectors and scenes: as good as their cards say, and hard enough for plain min-max."""

import os

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.api.registry import TASKS
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.scenes import scenes_folder
from vit_ptq_bench.tasks.storage.model_cards import read_card, weights_path

NAMES = TASKS.get("scenes")().model_names()
LARGEST_MB = 16


def test_there_is_a_bundled_detector():
    assert set(NAMES) == {"mask_rcnn_swin_mini", "cascade_mask_rcnn_swin_mini"}


@pytest.mark.parametrize("name", NAMES)
def test_detector_reaches_its_card_and_half_of_average_precision(name):
    task = TASKS.get("scenes")()
    loaded = task.load_model(name)
    found = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    card = read_card(name)
    assert (card.metric, loaded.reference) == ("box_ap", card.figure)
    assert abs(found.metrics["box_ap"] - card.figure) < loaded.tolerance
    assert card.figure >= 50
    assert found.n == 200
    assert weights_path(name).stat().st_size < LARGEST_MB * 1e6


@pytest.mark.parametrize("name", NAMES)
def test_min_max_loses_visibly_at_four_bits_and_collapses_at_three(name):
    task = TASKS.get("scenes")(TaskOptions(limit=50))
    loaded = task.load_model(name)
    calibration = Calibration(task.calibration_batches(loaded, 8, 0))
    reached = {}
    for bits in (32, 4, 3):
        method = METHODS.get("fp32" if bits == 32 else "minmax").create()
        table = method.bit_table(BitWidth(bits, bits))
        quantized = method.quantize(loaded.module, table, calibration)
        found = task.evaluate(quantized, loaded, torch.device("cpu"))
        reached[bits] = found.metrics["box_ap"]
    assert reached[4] < reached[32] - 10
    assert reached[3] < reached[32] / 4


def test_training_and_test_digits_are_disjoint_and_scenes_are_shared_between_runs():
    training, test = source_pools()
    seen = {image.tobytes() for image in training.images}
    assert not any(image.tobytes() in seen for image in test.images)
    folder = scenes_folder("validation")
    scenes_folder.cache_clear()
    assert scenes_folder("validation") == folder
    assert len(list(folder.glob("*.png"))) == 200


def test_scenes_in_a_folder_of_another_user_are_refused(monkeypatch):
    if not hasattr(os, "getuid"):
        pytest.skip("no user ids here")
    scenes_folder.cache_clear()
    own = os.getuid()
    scenes_folder("validation")
    scenes_folder.cache_clear()
    monkeypatch.setattr("vit_ptq_bench.tasks.storage.kept._user", lambda: str(own))
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(TaskError, match="belongs to another user"):
        scenes_folder("validation")
    scenes_folder.cache_clear()


def test_an_unknown_detector_is_refused():
    with pytest.raises(TaskError, match="unknown model 'vit_mini' for task scenes"):
        TASKS.get("scenes")().load_model("vit_mini")
