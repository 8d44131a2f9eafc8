"""The bundled detection task: scenes of handwritten digits, nothing to download."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks import detection, storage
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.task import LoadedModel
from vit_ptq_bench.tasks.classification.digit_rendering import source_pools
from vit_ptq_bench.tasks.detection.data import CocoFiles, read_coco
from vit_ptq_bench.tasks.detection.scene_rendering import SIZE, write_scenes
from vit_ptq_bench.tasks.detection.task import DetectionTask
from vit_ptq_bench.tasks.detection.zoo import BUNDLED

VALIDATION, CALIBRATION = 200, 256
"""Scenes to judge on, of test digits, and scenes to calibrate on, of training digits."""

SEEDS = {"validation": 1000, "calibration": 2000}

DIGITS = "vit_ptq_bench.tasks.classification.digit_rendering"

SCENES = "vit_ptq_bench.tasks.detection.scene_rendering"


@cache
def scenes_folder(part: str) -> Path:
    """Return the folder with the scenes of ``validation`` or ``calibration``; they are drawn once.

    They stay in the system's temporary folder, of which a sweep's runs share them, under a name made from
    all that decides them, and appear whole or not at all.
    """
    recipe = storage.recipe_key(
        (__name__, DIGITS, SCENES), ("numpy", "scikit-learn", "pillow", "pycocotools")
    )
    wanted = storage.private_folder(f"scenes-{recipe}") / part
    if wanted.is_dir():
        return wanted
    validation = part == "validation"
    pool = source_pools()[1 if validation else 0]
    fresh = Path(tempfile.mkdtemp(dir=wanted.parent))
    write_scenes(fresh, pool, VALIDATION if validation else CALIBRATION, SEEDS[part])
    try:
        fresh.rename(wanted)
    except OSError:  # another run was faster
        shutil.rmtree(fresh)
    return wanted


@cache
def _files(part: str) -> CocoFiles:
    folder = scenes_folder(part)
    return read_coco(folder / "annotations.json", folder)


@cache
def _data_id() -> str:
    """Identity of the source digits, which with the code (see the task's version) make every scene."""
    key = storage.recipe_key((__name__, DIGITS), ("numpy", "scikit-learn"))
    return storage.kept_text("scenes", key, _digits_id)


def _digits_id() -> str:
    pools = source_pools()
    return storage.arrays_id(*(array for pool in pools for array in (pool.images, pool.labels)))


@register_task
class Scenes(DetectionTask):
    """Find scikit-learn's handwritten digits on cards of three size bands, 160 x 160 pixels.

    200 scenes of test digits to judge on; calibration draws from 256 scenes of training digits. The models
    are the two bundled detectors, or their architectures with the weights of ``checkpoint``.
    """

    name = "scenes"
    version = 1
    evaluation_batch = 8
    small = True

    def model_names(self) -> list[str]:
        """Return the bundled detectors; with ``checkpoint`` every architecture can have its weights."""
        own = self.options.checkpoint is not None
        return [name for name in BUNDLED if own or storage.weights_path(name).is_file()]

    def weights_id(self, model: str) -> str:
        """Return the hash of the weights file."""
        self.require_model(model)
        return storage.file_id(storage.bundled_weights(model, self.options))

    def data_id(self) -> str:
        """Return a hash over the source digits."""
        return _data_id()

    def load_model(self, model: str) -> LoadedModel:
        """Load a bundled detector; its card's figure is the reference."""
        self.require_model(model)
        module = self.build(model, storage.bundled_weights(model, self.options))
        return storage.bundled_model(model, module, self.options)

    def files(self) -> CocoFiles:
        """Return the scenes of test digits."""
        return _files("validation")

    def calibration_dataset(self, pipeline: list[Any]) -> Any:
        """Return the scenes of training digits."""
        return detection.build_dataset(_files("calibration"), pipeline)

    def scale(self, config: Any) -> tuple[int, int]:
        """Scenes keep their size."""
        return (SIZE, SIZE)
