"""The bundled detection task: scenes of handwritten digits, nothing to download."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from vit_ptq_bench.tasks import storage
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.selection import subset
from vit_ptq_bench.tasks.api.task import LoadedModel
from vit_ptq_bench.tasks.detection.data import CocoFiles, read_coco
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.scene_rendering import SIZE, write_scenes
from vit_ptq_bench.tasks.detection.task import DetectionTask
from vit_ptq_bench.tasks.detection.zoo import BUNDLED
from vit_ptq_bench.tasks.errors import TaskError

VALIDATION, CALIBRATION = 200, 256
"""Scenes to judge on, of test digits, and scenes to calibrate on, of training digits."""

SEEDS = {"validation": 1000, "calibration": 2000}

DIGITS = "vit_ptq_bench.tasks.detection.digits"

SEAL = "contents.sha256"
"""File beside the scenes with the hash over all of them."""

SCENES = "vit_ptq_bench.tasks.detection.scene_rendering"


@cache
def scenes_folder(part: str) -> Path:
    """Return the folder with the scenes of ``validation`` or ``calibration``; they are drawn once.

    They stay in the system's temporary folder, of which a sweep's runs share them, under a name made from
    all that decides them, and appear whole or not at all. Scenes of which files were changed or removed
    since are drawn again.
    """
    recipe = storage.recipe_key(
        (__name__, DIGITS, SCENES), ("numpy", "scikit-learn", "pillow", "pycocotools")
    )
    wanted = storage.private_folder(f"scenes-{recipe}") / part
    if wanted.is_dir():
        if _is_whole(wanted):
            return wanted
        shutil.rmtree(wanted, ignore_errors=True)  # another run may be at it, too
    validation = part == "validation"
    pool = source_pools()[1 if validation else 0]
    fresh = Path(tempfile.mkdtemp(dir=wanted.parent))
    write_scenes(fresh, pool, VALIDATION if validation else CALIBRATION, SEEDS[part])
    (fresh / SEAL).write_text(_contents(fresh), encoding="ascii")
    try:
        fresh.rename(wanted)
    except OSError:  # another run was faster
        shutil.rmtree(fresh)
    return wanted


def _is_whole(folder: Path) -> bool:
    """Whether scenes are those that were drawn."""
    try:
        return (folder / SEAL).read_text(encoding="ascii") == _contents(folder)
    except (OSError, UnicodeDecodeError, TaskError):  # a file is gone or damaged
        return False


def _contents(folder: Path) -> str:
    """Hash over the names and contents of a folder's files, but for the one that keeps it."""
    paths = sorted(path for path in folder.iterdir() if path.name != SEAL)
    ids = zip(paths, storage.content_ids(paths), strict=True)
    return hashlib.sha256("".join(f"{path.name} {i}\n" for path, i in ids).encode()).hexdigest()


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
        own = self.options.weights_of
        return [
            name
            for name in BUNDLED
            if own(name) is not None or storage.weights_path(name).is_file()
        ]

    def weights_id(self, model: str) -> str:
        """Return the hash of the weights file."""
        self.require_model(model)
        return storage.file_id(storage.bundled_weights(model, self.options))

    def data_id(self) -> str:
        """Return a hash over the source digits."""
        return _data_id()

    def training_images(self) -> int:
        """Return how many scenes there are to calibrate on; they need not be drawn yet."""
        return CALIBRATION

    def weights_problem(self, model: str) -> str | None:
        """Return why the checkpoint's tensors do not fit the model."""
        return storage.checkpoint_problem(self, model)

    def evaluated_images(self) -> int:
        """Return how many scenes judge; they need not be drawn yet."""
        return len(subset(VALIDATION, self.options.limit))

    def load_model(self, model: str) -> LoadedModel:
        """Load a bundled detector; its card's figure is the reference."""
        self.require_model(model)
        module, weights = self.build(model, storage.bundled_weights(model, self.options))
        return storage.bundled_model(model, module, self.options, weights)

    def licence(self, model: str) -> str | None:
        """Return the project's licence; of weights of the user's own what their file states."""
        return storage.stated_licence(self.options.weights_of(model), storage.LICENCE)

    def files(self) -> CocoFiles:
        """Return the scenes of test digits."""
        return _files("validation")

    def calibration_images(self) -> list[Path]:
        """Return the scenes of training digits."""
        files = _files("calibration")
        return [files.images / entry["file_name"] for entry in files.data["images"]]

    def scale(self, config: Any) -> tuple[int, int]:
        """Scenes keep their size."""
        return (SIZE, SIZE)
