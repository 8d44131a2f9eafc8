"""Sources of calibration images: the names and settings of a suite, held against what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache, partial
from typing import Any, get_type_hints

from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.bench.planning.names import hint
from vit_ptq_bench.bench.planning.size import Say
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.source import SourceSpec
from vit_ptq_bench.bench.records.spec import CalibrationSpec
from vit_ptq_bench.methods.api.parameters import checked
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.sources import (
    FOLDER,
    PSAQ,
    SOURCES,
    SYNTHESIS_VERSION,
    TRAINING,
    SynthesisSettings,
)
from vit_ptq_bench.tasks import Task


def check_sources(suite: Suite) -> None:
    """Refuse sources that there are not, and settings that a source does not have.

    Raises:
        BenchError: with file, line and key where they are known.
    """
    for name in suite.calibration:
        if name not in SOURCES:
            problem = f"unknown source {name!r}{hint(name, list(SOURCES))}; there are {_known()}"
            raise suite.error(problem, "calibration", value=name)
    for name, settings in suite.sources.items():
        if name != PSAQ:
            raise suite.error(f"only {PSAQ} has settings", "sources", name)
        if name not in suite.calibration and "calibration" not in suite.overridden:
            raise suite.error(
                f"the suite has no calibration = {name!r} to set this for", "sources", name
            )
        _settings(suite, settings)


def _known() -> str:
    return ", ".join(SOURCES)


def _settings(suite: Suite, settings: Mapping[str, Any]) -> SynthesisSettings:
    """The settings of the synthesis.

    Raises:
        BenchError: one that there is not, or of the wrong type or out of bounds; with file, line and key.
    """
    hints = get_type_hints(SynthesisSettings)
    known = {item.name: item.metadata for item in fields(SynthesisSettings)}
    values = {}
    for name, value in settings.items():
        if name not in known:
            problem = f"{PSAQ} has no setting {name!r}{hint(name, list(known))}"
            raise suite.error(problem, "sources", PSAQ, name)
        try:
            values[name] = checked(f"{PSAQ}.{name}", value, hints[name], known[name])
        except MethodError as error:
            raise suite.error(error, "sources", PSAQ, name) from None
    return SynthesisSettings(**values)


class Sources:
    """The calibration images of a suite's runs, as specifications have them.

    What is asked of a task once is not asked again for every run.

    Args:
        suite: the suite; `check_sources` has seen it.
        task: its task.
        say: takes what has to be said of a folder, and what images that are made will cost.
    """

    def __init__(self, suite: Suite, task: Task, say: Say) -> None:
        self._suite, self._task, self._say = suite, task, say
        self._of_training = cache(partial(ask, task, "calibration_id"))
        self._available = cache(partial(ask, task, "training_images"))
        self._check_folder = cache(self._checked_folder)
        self._named = cache(self._named_source)

    def spec(self, source: str, images: int, seed: int, method: str) -> CalibrationSpec:
        """Return the calibration set of a run.

        Args:
            source: of `SOURCES`.
            images: how many; a method that needs none gets none from any source.
            seed: of the draw.
            method: what asks for them, for errors.

        Raises:
            BenchError: there are fewer training images.
            TaskError: the folder has too few images, or one of those drawn cannot be read.
        """
        if not images:
            return CalibrationSpec(0, seed)
        if source == TRAINING:
            self._require(images, method)
            return CalibrationSpec(images, seed, self._of_training(images, seed))
        if source == FOLDER:
            self._check_folder(images, seed)
        return CalibrationSpec(images, seed, source=self._named(source))

    def _require(self, images: int, method: str) -> None:
        """Refuse runs that ask for more training images than there are."""
        available: int | None = self._available()
        if available is None or images <= available:
            return
        fewer = f"ask for fewer: --calibration-images {available}, or " if available else ""
        raise self._suite.error(
            f"{method} asks for {images} calibration images, and task {self._task.name} has {available} "
            f"training images to draw them from; {fewer}leave {method} out",
            "calibration_images",
        )

    def _named_source(self, name: str) -> SourceSpec:
        if name == FOLDER:
            return SourceSpec(FOLDER, data=ask(self._task, "folder_id"))
        if type(self._task).image_form is Task.image_form:
            problem = (
                f"task {self._task.name} does not say what images its models take: no image_form()"
            )
            raise self._suite.error(problem, "calibration", value=PSAQ)
        settings = _settings(self._suite, self._suite.sources.get(PSAQ, {}))
        self._say(
            f"{PSAQ}: calibration on 0 real images; they are made once per model, seed and number, for about "
            f"{settings.passes} F (F: one forward pass over the calibration images in full precision)"
        )
        return SourceSpec(PSAQ, SYNTHESIS_VERSION, asdict(settings))

    def _checked_folder(self, images: int, seed: int) -> None:
        for note in ask(self._task, "check_folder", images, seed):
            self._say(f"{self._task.name}: {note}")
