"""An exported model beside what it was made of: predictions, size and time, all on this processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vit_ptq_bench.bench.deployment.detectors import DetectorOn, FeatureMaps, padded
from vit_ptq_bench.bench.deployment.exporting import Subject
from vit_ptq_bench.bench.deployment.runtimes import (
    OnnxRuntime,
    OpenVino,
    Watched,
    milliseconds,
)
from vit_ptq_bench.bench.deployment.static import PRODUCTS, quantize_static
from vit_ptq_bench.methods.quantization.deployment.double import FLOAT64, InDouble
from vit_ptq_bench.methods.quantization.deployment.lowering import QuantizedGraph
from vit_ptq_bench.tasks import Evaluation, LoadedModel

if TYPE_CHECKING:
    from vit_ptq_bench.methods.quantization.deployment.onnx_files import Written

MB = 10**6

SIMULATED = "simulated in torch"

IN_DOUBLE = "simulated in float64"
"""The row that tells how many predictions depend on the rounding of the arithmetic around the quantizers."""

OPERATORS = "its operators in float64"
"""The row of what the file was written of, in torch; it is held against that of `IN_DOUBLE`."""

EXACT = 99.0
"""Percent of the predictions of `IN_DOUBLE` that what computes in float64 must have: next to nothing is
rounded there."""

STATIC = {"ONNX Runtime static W8A8": (), "the same, products only": PRODUCTS}
"""Rows of ONNX Runtime's own quantization -> the operators that it quantizes, none: all."""

ALLOWANCE = 2.0
"""Percent of the images by which a deployed file may differ more than the simulation in float64 does."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One way to run a model.

    Attributes:
        title: which.
        metric: the task's first, in percent; None: not judged.
        images: how many it was judged on.
        beside: title of the simulation that it is held against; None: of other weights, or the simulated
            model itself.
        alike: share of the images, in percent, whose prediction is that of the simulation, or of the boxes
            (`DetectorOn.alike`); None as above.
        size: of its file, in MB.
        milliseconds: of the file, per image, one at a time; None: of the simulation, which says nothing of a
            deployment.
    """

    title: str
    metric: float
    images: int
    beside: str | None
    alike: float | None
    size: float | None
    milliseconds: float | None


def complaints(rows: Sequence[Row], agreement: float | None) -> list[str]:
    """Say which rows have too few of the predictions that they have to have.

    Args:
        rows: of a `Comparison`.
        agreement: least percentage of a deployed file; None: of one in float64 `EXACT`, of another what the
            simulation in float64 has, less `ALLOWANCE`.
    """
    (own,) = (row.alike for row in rows if row.title == IN_DOUBLE)
    assert own is not None
    found = []
    for row in rows:
        if row.alike is None or row.title == IN_DOUBLE:
            continue
        in_double = row.beside == IN_DOUBLE
        least = EXACT if in_double else own - ALLOWANCE
        if agreement is not None and row.title != OPERATORS:
            least = agreement
        if row.alike < least:
            model = "the simulation in float64" if in_double else "the simulated model"
            found.append(
                f"{row.title}: {row.alike:.1f} % of the predictions are those of {model}, fewer than "
                f"{least:.1f} %"
            )
    return found


class Comparison:
    """Judges a model in several forms on the evaluation images of its task.

    Args:
        subject: the saved model.
        exported: its ONNX file, and what that was written of; one that computes in float64 is held against
            the simulation in float64.
        threads: of each runtime.
        say: told what is being done.
    """

    def __init__(self, subject: Subject, exported: Written, threads: int, say: Say) -> None:
        self._subject, self._exported, self._written = subject, exported.path, exported
        self._threads, self._say = threads, say
        self._graph = QuantizedGraph(subject.quantized)
        self._simulated: dict[str, Watched | DetectorOn] = {}
        self._timed: dict[str, nn.Module] = {}
        self._rows: list[Row] = []

    def rows(
        self, openvino: bool, full: LoadedModel | None, calibration: Sequence[Tensor] | None
    ) -> list[Row]:
        """Return the simulated model, the exported one, and what it is held against.

        Args:
            openvino: whether OpenVINO, which computes in float32, reads the file too.
            full: the model in full precision; None: its weights are not there.
            calibration: images for ONNX Runtime's own static quantization of it; None: without.
        """
        self._judge(SIMULATED, self._graph, None)
        self._judge(IN_DOUBLE, InDouble(self._graph), None)
        assert self._written.graph is not None
        self._judge(OPERATORS, InDouble(self._written.graph), None, beside=IN_DOUBLE)
        deployed = OnnxRuntime(self._exported, self._threads)
        double = self._written.precision == FLOAT64
        title = f"deployed on {deployed.title}{', float64' * double}"
        self._judge(title, deployed, self._exported, beside=IN_DOUBLE if double else SIMULATED)
        if openvino:
            other = OpenVino(self._exported, self._threads)
            self._judge(f"deployed on {other.title}", other, self._exported)
        with TemporaryDirectory(prefix="bench-") as folder:
            if full is not None:
                self._judge_others(full, calibration, Path(folder), deployed.title)
            self._time()
        return self._rows

    def _judge_others(
        self, full: LoadedModel, calibration: Sequence[Tensor] | None, folder: Path, runtime: str
    ) -> None:
        """Full precision, and what the runtime makes of it by itself."""
        from vit_ptq_bench.methods.quantization.deployment.onnx_files import write_float_onnx

        exact, image = folder / "full.onnx", self._subject.image
        graph = FeatureMaps(full.module) if self._subject.is_detector else full.module
        write_float_onnx(graph, image, exact, self._graph.says)
        self._judge(f"FP32 on {runtime}", OnnxRuntime(exact, self._threads), exact, full.module)
        if calibration is None:
            return
        if self._subject.is_detector:
            calibration = [padded(batch, _size_of(image)) for batch in calibration]
        for title, operators in STATIC.items():
            static = folder / f"{len(self._rows)}.onnx"
            quantize_static(exact, static, calibration, operators)
            self._judge(title, OnnxRuntime(static, self._threads), static, full.module)

    def _judge(
        self,
        title: str,
        module: nn.Module,
        file: Path | None,
        other: nn.Module | None = None,
        beside: str = SIMULATED,
    ) -> None:
        """Judge what ``module`` says, and hold it against a simulation.

        Args:
            title: of the row.
            module: a form of the model.
            file: that it runs; None: none.
            other: the network that it is of, if not the quantized one: nothing to hold it against.
            beside: the row that its predictions are held against.
        """
        self._say(f"judging {title}")
        watched = self._watched(module, other or self._subject.quantized.module)
        task, loaded = self._subject.task, self._subject.loaded
        evaluation: Evaluation = task.evaluate(watched, loaded, torch.device("cpu"), None)
        held = other is None and beside in self._simulated
        alike = _alike(self._simulated[beside], watched) if held else None
        if file is None:
            self._simulated[title] = watched
        else:
            self._timed[title] = module
        self._rows.append(
            Row(
                title,
                evaluation.metrics[task.metrics[0]],
                evaluation.n,
                beside if held else None,
                alike,
                file.stat().st_size / MB if file is not None else None,
                None,
            )
        )

    def _watched(self, module: nn.Module, network: nn.Module) -> Watched | DetectorOn:
        """What the task can judge: a classifier, or a detector's heads behind ``module``."""
        if self._subject.is_detector:
            return DetectorOn(network, module, _size_of(self._subject.image))
        return Watched(module)

    def _time(self) -> None:
        self._say("timing one image at a time, the models in turn")
        spent = milliseconds(self._timed, self._subject.image)
        self._rows = [
            Row(**{**vars(row), "milliseconds": spent.get(row.title)}) for row in self._rows
        ]


def _alike(expected: Watched | DetectorOn, found: Watched | DetectorOn) -> float:
    if isinstance(expected, DetectorOn) and isinstance(found, DetectorOn):
        return expected.alike(found)
    assert isinstance(expected, Watched) and isinstance(found, Watched)
    return expected.alike(found)


def _size_of(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return height, width
