"""The bundled detection task: scenes of handwritten digits, nothing to download."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.task import LoadedModel
from vit_ptq_bench.tasks.checkpoints import file_id
from vit_ptq_bench.tasks.classification import digit_rendering as digits_data
from vit_ptq_bench.tasks.classification.digit_rendering import source_pools
from vit_ptq_bench.tasks.detection import scene_rendering as scenes
from vit_ptq_bench.tasks.detection.data import CocoFiles, build_dataset, read_coco
from vit_ptq_bench.tasks.detection.scene_rendering import SIZE, write_scenes
from vit_ptq_bench.tasks.detection.task import DetectionTask
from vit_ptq_bench.tasks.detection.zoo import BUNDLED
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.model_cards import read_card, weights_path

VALIDATION, CALIBRATION = 200, 256
"""Scenes to judge on, of test digits, and scenes to calibrate on, of training digits."""


SEEDS = {"validation": 1000, "calibration": 2000}


@cache
def scenes_folder(part: str) -> Path:
    """Return the folder with the scenes of ``validation`` or ``calibration``; they are drawn once.

    They stay in the system's temporary folder, of which a sweep's runs share them, under a name made from
    all that decides them, and appear whole or not at all.
    """
    wanted = Path(tempfile.gettempdir()) / f"bench-scenes-{_user()}-{_recipe()}" / part
    wanted.parent.mkdir(mode=0o700, exist_ok=True)
    _require_own(wanted.parent)
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


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def _require_own(folder: Path) -> None:
    """Pictures that another user may have put there are no benchmark."""
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise TaskError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")


def _recipe() -> str:
    """Hash over the source digits and the code that draws."""
    digest = hashlib.sha256(_data_hash().encode())
    for module in (scenes, digits_data):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


@cache
def _files(part: str) -> CocoFiles:
    folder = scenes_folder(part)
    return read_coco(folder / "annotations.json", folder)


@cache
def _data_hash() -> str:
    """Hash over the source digits, which with the code (see the task's version) make every scene."""
    digest = hashlib.sha256()
    for pool in source_pools():
        for array in (pool.images, pool.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()}"


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
        return [name for name in BUNDLED if own or weights_path(name).is_file()]

    def weights_id(self, model: str) -> str:
        """Return the hash of the weights file."""
        self._require(model)
        return file_id(self.options.checkpoint or weights_path(model))

    def data_id(self) -> str:
        """Return a hash over the source digits."""
        return _data_hash()

    def load_model(self, model: str) -> LoadedModel:
        """Load a bundled detector; its card's figure is the reference."""
        self._require(model)
        module, _ = self.build(model, self.options.checkpoint or weights_path(model))
        card = None if self.options.checkpoint else read_card(model)
        return LoadedModel(
            model, module, card.figure if card else None, source="tasks/weights/models.json"
        )

    def files(self) -> CocoFiles:
        """Return the scenes of test digits."""
        return _files("validation")

    def calibration_dataset(self, pipeline: list[Any]) -> Any:
        """Return the scenes of training digits."""
        return build_dataset(_files("calibration"), pipeline)

    def scale(self, config: Any) -> tuple[int, int]:
        """Scenes keep their size."""
        return (SIZE, SIZE)

    def _require(self, model: str) -> None:
        known = self.model_names()
        if model not in known:
            raise TaskError(
                f"unknown model {model!r} for task scenes; there are {', '.join(known)}"
            )
