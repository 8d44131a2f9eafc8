"""A plugin for the tests: a toy task on a tiny vision transformer, and methods that misbehave."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import timm
import torch

from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.minmax import MinMax
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.task import Evaluation, LoadedModel, Task

MODELS = ("toy_a", "toy_b", "toy_wrong", "toy_frail")
IMAGES = 24


@register_task
class Toy(Task):
    """Classify noise as the full-precision model does; ``toy_wrong`` misses its known figure.

    Loading ``toy_frail`` kills the process as often as the file ``deaths`` of the data folder says.
    """

    name = "toy"
    version = 1
    metrics = ("top1",)
    small = True

    def model_names(self):
        return list(MODELS)

    def weights_id(self, model):
        return f"seeded:{model}"

    def data_id(self):
        return "noise:0"

    def load_model(self, model):
        if model == "toy_frail":
            deaths = self.options.data_dir / "deaths"
            if left := int(deaths.read_text()):
                deaths.write_text(str(left - 1))
                os.kill(os.getpid(), signal.SIGKILL)
        torch.manual_seed(MODELS.index(model))
        module = timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5
        ).eval()
        reference = 50.0 if model == "toy_wrong" else 100.0
        return LoadedModel(name=model, module=module, reference=reference, tolerance=0.5)

    def calibration_batches(self, loaded, n, seed):
        generator = torch.Generator().manual_seed(1000 + seed)
        return [torch.randn(n, 3, 16, 16, generator=generator)]

    def evaluate(self, module, loaded, device, progress=None):
        n = self.options.limit or IMAGES
        images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            truth = self.load_model(loaded.name).module(images).argmax(1)
            correct = (module(images).argmax(1) == truth).numpy()
        if progress is not None:
            progress(n, n)
        top1 = 100.0 * float(correct.mean())
        return Evaluation(
            metrics={"top1": top1},
            intervals={"top1": (top1, top1)},
            standard_errors={"top1": 0.0},
            n=n,
            outcomes=np.asarray(correct, dtype=bool),
        )


@register_method
class ToyPlain(MinMax):
    """Min-max under another name."""

    name = "toy-plain"
    paper = "none"


@register_method
class ToyChooser(MinMax):
    """Keeps its head's input at eight bits."""

    name = "toy-chooser"
    paper = "none"

    def found_table(self, model, table, calibration):
        return table.change("head.input@head", bits=8)


@register_method
class ToyBlind(ToyPlain):
    """Looks at no image."""

    name = "toy-blind"
    calibration_images = 0


@register_method
class ToyFew(MinMax):
    """Its authors calibrate with five images."""

    name = "toy-few"
    paper = "none"
    calibration_images = 5


@register_method
class ToyRandom(MinMax):
    """Its scales depend on every global random generator, so it shows a missing seed."""

    name = "toy-random"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        factor = 1 + 0.2 * (torch.rand(()).item() + np.random.rand())
        for site in model.sites():
            if site.quantizer.scale.numel():
                site.quantizer.scale.mul_(factor)


@register_method
class ToySlow(MinMax):
    """Sleeps while it calibrates."""

    @dataclass(frozen=True)
    class Parameters:
        """``seconds`` to sleep."""

        seconds: float = 0.7

    name = "toy-slow"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        end = time.monotonic() + self.parameters.seconds
        while time.monotonic() < end:
            time.sleep(0.05)
        super().calibrate(model, calibration, progress)


@register_method
class ToyPut(MinMax):
    """Uses an operation that has no deterministic form on any device."""

    name = "toy-put"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        super().calibrate(model, calibration, progress)


@register_method
class ToyFail(MinMax):
    """Raises."""

    name = "toy-fail"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        raise ZeroDivisionError("the toy is broken")


@register_method
class ToyMemory(MinMax):
    """Runs out of memory, as far as Python can tell."""

    name = "toy-memory"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        raise MemoryError


@register_method
class ToyKilled(MinMax):
    """Is killed from outside; ``signal`` is the number."""

    @dataclass(frozen=True)
    class Parameters:
        """``number`` of the signal."""

        number: int = int(signal.SIGKILL)

    name = "toy-killed"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        os.kill(os.getpid(), self.parameters.number)
        time.sleep(5)


@register_method
class ToyScarce(ToyRandom):
    """Asks for more memory than there is unless its batch is small."""

    @dataclass(frozen=True)
    class Parameters:
        """``fits``: images for which there is memory."""

        batch_size: int = 8
        fits: int = 2

    name = "toy-scarce"
    batch = "batch_size"

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        if self.parameters.batch_size > self.parameters.fits:
            torch.empty(2**60, dtype=torch.uint8)


@register_method
class ToyParricide(MinMax):
    """Sends a signal to the fork server, and goes on; ``signal`` is the number."""

    @dataclass(frozen=True)
    class Parameters:
        """``number`` of the signal."""

        number: int = int(signal.SIGKILL)

    name = "toy-parricide"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        os.kill(os.getppid(), self.parameters.number)
        super().calibrate(model, calibration, progress)


@register_method
class ToyVandal(MinMax):
    """Patches a class and the random state of its process."""

    name = "toy-vandal"
    paper = "none"

    def calibrate(self, model, calibration, progress=None):
        super().calibrate(model, calibration, progress)
        timm.models.VisionTransformer.forward = lambda self, x: x.mean((2, 3))[:, :1]
        torch.manual_seed(123)


@register_method
class ToyPicky(MinMax):
    """Supports nothing."""

    name = "toy-picky"
    paper = "none"

    def supports(self, model, table):
        return "the toy is picky"
