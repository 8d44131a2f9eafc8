"""From a saved model to a file that others run, and what is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.deployment.extras import require
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.spec import RunSpec
from vit_ptq_bench.bench.records.store import load_record
from vit_ptq_bench.methods.quantization.bits import role_of

if TYPE_CHECKING:
    from torch import Tensor

    from vit_ptq_bench.methods.quantization.deployment.lowering import LoweredSite
    from vit_ptq_bench.methods.quantization.deployment.onnx_files import Written
    from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
    from vit_ptq_bench.tasks import LoadedModel, Task

SAVED = ".safetensors"


@dataclass(frozen=True)
class Subject:
    """A saved model that was built again.

    Attributes:
        spec: of its run.
        task: of that run.
        loaded: its network, whose weights mean nothing.
        quantized: the model.
        size: height and width that a detector's file is for; None: of the task's largest image.

    Raises:
        BenchError: a classifier, which takes images of one size, is given another.
    """

    spec: RunSpec
    task: Task
    loaded: LoadedModel
    quantized: QuantizedModel
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not self.is_detector:
            raise BenchError("--size is for detectors; a classifier takes images of its own size")

    @property
    def is_detector(self) -> bool:
        """Whether heads stay behind: the file gives the feature maps that they read."""
        return self.quantized.structure.features is not None

    @property
    def image(self) -> Tensor:
        """An image of the size that the file is for, float32 [1, 3, H, W]."""
        import torch

        return torch.zeros(1, 3, *(self.size or self.task.image_form(self.loaded).size))


def saved_file(text: str, results: Path) -> Path:
    """Return the saved model that a word names: a file, or the run of a results folder that kept one.

    Raises:
        BenchError: there is no such run, or it kept no model.
    """
    path = Path(text)
    if text.endswith(SAVED):
        return path
    if path.is_file() and path.suffix != ".json":
        raise BenchError(
            f"{path}: is no saved quantized model; give the file {SAVED} that `bench run --save-models` kept "
            "in its folder models, or the id of its run with --results"
        )
    store, record = load_record(text, results)
    found = store.model_path(record)
    if not found.is_file():
        raise BenchError(
            f"run {record.run_id} of {store.root} kept no model; make it again with one: "
            f"bench repeat {record.run_id} --results {store.root} --save-models"
        )
    return found


def export_onnx(
    subject: Subject, path: Path, opset: int, packed: bool, precision: str = "float32"
) -> Written:
    """Write the ONNX file of a saved model.

    Args:
        subject: the model.
        path: the file.
        opset: version of the operator set.
        packed: whether integers of 4 bits are packed into 8.
        precision: what the file computes in between integers, "float32" or "float64".

    Raises:
        BenchError: what writes ONNX is not installed, or a detector's file is to compute in float64.
        MethodError: an operator set or a precision in which the model cannot be written.
    """
    if subject.is_detector and precision != "float32":
        raise BenchError(
            f"--precision {precision} is for classifiers: a detector's heads stay in mmdet, in float32"
        )
    require("onnx", "onnx", "onnxscript")
    from vit_ptq_bench.methods.quantization.deployment.onnx_files import write_onnx

    facts = {name: str(value) for name, value in subject.spec.facts.items()}
    return write_onnx(subject.quantized, subject.image, path, opset, packed, facts, precision)


def told(written: Written, subject: Subject) -> Iterator[str]:
    """Yield what became of the sites, a line each."""
    yield f"wrote {written.path}: {written.size / 1e6:.2f} MB, operator set {written.opset}"
    if subject.is_detector:
        height, width = subject.image.shape[2:]
        yield (
            f"backbone and neck for images of {height} x {width}; what the heads compute depends on what "
            "they find, and stays in mmdet"
        )
    expressed = [site for site in written.sites if site.integers is not None]
    kinds = Counter((_kind(site), site.integers) for site in expressed)
    held = ", ".join(f"{count} {kind} as {name}" for (kind, name), count in kinds.items())
    yield (
        f"{len(expressed)} of {len(written.sites)} sites between QuantizeLinear and DequantizeLinear"
        + (f": {held}" if held else "")
    )
    others = Counter(
        (role_of(site.key), site.bits, site.scheme, site.stored, site.reason)
        for site in written.sites
        if site.integers is None
    )
    for (key, bits, scheme, stored, reason), count in others.items():
        how = "stored as integers, decoded" if stored else "computed"
        yield f"{key} ({count} sites, {scheme}, {bits} bit) {how} in floating point: {reason}"
    yield from _wider(written)


def _wider(written: Written) -> Iterator[str]:
    """What helps where the operator set alone is why activations have no operator."""
    from vit_ptq_bench.methods.quantization.deployment.integers import OUTSIDE
    from vit_ptq_bench.methods.quantization.deployment.onnx_files import WIDER_OPSET

    outside = (site for site in written.sites if site.reason.startswith(OUTSIDE))
    if written.opset < WIDER_OPSET and not all(site.stored for site in outside):
        yield (
            f"operator set {WIDER_OPSET} has integers of 16 bits for zero points of activations: --opset "
            f"{WIDER_OPSET}"
        )


def _kind(site: LoweredSite) -> str:
    return "weights" if site.stored else "activations"


def table_of(written: Written) -> list[dict[str, Any]]:
    """Return what became of each site, as JSON-ready data."""
    return [dict(vars(site)) for site in written.sites]
