"""The calibration images of a run: drawn by its task, or made from its model."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vit_ptq_bench.bench.records.spec import CalibrationSpec
from vit_ptq_bench.methods.quantization.calibration.cache import TensorCache, fingerprint
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.sources import InputForm, SynthesisSettings
from vit_ptq_bench.methods.quantization.calibration.synthesis import synthesise
from vit_ptq_bench.tasks import LoadedModel, Task


def calibration_set(
    task: Task, loaded: LoadedModel, planned: CalibrationSpec
) -> Calibration | None:
    """Return the images that a task draws, on the CPU; None: they have to be made, see `made_set`.

    A method that asks for no image gets a blank one: it has promised not to look, and a data set
    without calibration images must not stop it.

    Raises:
        TaskError: there are too few images, or one cannot be read.
    """
    images, seed, source = planned.images, planned.draw, planned.source
    if images == 0:
        return Calibration([torch.zeros(1, 3, 1, 1)], seed=seed)
    if source is None:
        return Calibration(task.calibration_batches(loaded, images, seed), seed=seed)
    if source.is_made:
        return None
    return Calibration(task.folder_batches(loaded, images, seed), seed=seed)


def made_set(
    task: Task,
    loaded: LoadedModel,
    planned: CalibrationSpec,
    cache: TensorCache | None,
    progress: CalibrationProgress | None = None,
) -> Calibration:
    """Return images that are made from the model, on its device; no file of the task's data is opened.

    A sweep makes them once per model, seed and settings; a run that finds them is charged what they took.

    Args:
        task: says what images the model takes.
        loaded: the model, in full precision, on the device of the run.
        planned: how many images, from which seed, with which settings.
        cache: where an earlier run may have left them; None: nowhere.
        progress: told of each step.

    Raises:
        MethodError: an unsupported model.
        TaskError: the task does not say what its images are like.
    """
    assert planned.source is not None and planned.source.parameters is not None
    settings = SynthesisSettings(**planned.source.parameters)
    form = task.image_form(loaded)
    own = InputForm(form.size, form.mean, form.std)
    device = next(loaded.module.parameters()).device
    words = (planned.source.to_dict(), own, planned.images, planned.draw, str(device))
    key = fingerprint(words, loaded.module.state_dict().values())
    found = None if cache is None else cache.get(key)
    if found is None:
        start = time.perf_counter()
        batches = synthesise(loaded.module, own, planned.images, settings, planned.draw, progress)
        found = {str(number): batch for number, batch in enumerate(batches)}
        if cache is not None:
            cache.put(key, found, time.perf_counter() - start)
    return Calibration(_in_order(found, device), seed=planned.draw)


def _in_order(batches: dict[str, Tensor], device: torch.device) -> list[Tensor]:
    return [batches[str(number)].to(device) for number in range(len(batches))]
