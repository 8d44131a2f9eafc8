"""`bench export`: a quantized model as a file that ONNX runtimes take."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_json, add_plugin, add_results, add_task_options
from vit_ptq_bench.bench.cli.text import print_json
from vit_ptq_bench.bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor

    from vit_ptq_bench.bench.deployment.comparison import Row
    from vit_ptq_bench.bench.deployment.exporting import Subject
    from vit_ptq_bench.methods.quantization.deployment.onnx_files import Written
    from vit_ptq_bench.tasks import LoadedModel

DESCRIPTION = """\
Write a model that `bench run --save-models` kept as an ONNX file: QuantizeLinear and DequantizeLinear at
every site with a uniform, static grid, weights as integers. What has no such operator is named, with the
nearest form that has one. Of a detector the file has backbone and neck. With --check the file is run on the
evaluation images, beside the simulated model, full precision and ONNX Runtime's own static quantization.
Needs the extra `onnx`."""

DISAGREES = 1


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "export", help="write a saved quantized model as an ONNX file", description=DESCRIPTION
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "source",
        metavar="RUN|FILE",
        help="run id (or its beginning) of a run that kept its model, or the file that it kept",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that FILE was made of, where that is a program (a config file)",
    )
    _add_file(parser)
    _add_check(parser)
    add_results(parser)
    add_json(parser)
    add_task_options(parser)
    add_plugin(parser)


def _add_file(parser: argparse.ArgumentParser) -> None:
    """The words of what is written."""
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="default: %(default)s")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="default: beside the model, as .onnx"
    )
    parser.add_argument(
        "--opset", metavar="N", type=int, default=21, help="operator set (default: %(default)s)"
    )
    parser.add_argument(
        "--integers",
        choices=("4", "8"),
        default="4",
        help="narrowest integers in the file: 4 makes it smallest, 8 faster in ONNX Runtime (default: 4)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float64"),
        default="float32",
        help="what is computed in between integers: float64 is slow, and ONNX Runtime then gives the "
        "predictions of the simulation in float64, to the last image (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        metavar="HxW",
        type=_size,
        help="images of a detector's file (default: the task's largest, lying on its long side)",
    )


def _size(text: str) -> tuple[int, int]:
    """Height and width, like "800x1344"."""
    height, by, width = text.partition("x")
    if not by or not all(side.isdecimal() and int(side) > 0 for side in (height, width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no height and width, like 800x1344")
    return int(height), int(width)


def _add_check(parser: argparse.ArgumentParser) -> None:
    """The words of the comparison."""
    check = parser.add_argument_group("check")
    check.add_argument(
        "--check", action="store_true", help="run the file on the evaluation images and compare"
    )
    check.add_argument(
        "--agreement",
        metavar="PERCENT",
        type=float,
        help="of the images have to get the simulated model's prediction (default: as many as get it when "
        "the simulation computes in float64, less 2)",
    )
    check.add_argument(
        "--openvino", action="store_true", help="let OpenVINO read the file too (extra `openvino`)"
    )
    check.add_argument(
        "--threads", metavar="N", type=int, default=1, help="of a runtime (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file, compare if asked to, and return the exit status."""
    from vit_ptq_bench.bench.deployment.exporting import export_onnx, saved_file, told
    from vit_ptq_bench.bench.planning import plugins

    plugins.load(Path(file) for file in arguments.plugin or ())
    source = saved_file(arguments.source, arguments.results)
    path = arguments.output or source.with_suffix(".onnx")
    if path.suffix == source.suffix or not path.parent.is_dir():
        raise BenchError(f"{path}: give --output a file .onnx in a folder that is there")
    if arguments.openvino and arguments.precision != "float32":
        raise BenchError(
            f"OpenVINO computes in float32: leave --openvino out with --precision {arguments.precision}"
        )
    subject = _built(source, arguments)
    packed = arguments.integers == "8"
    written = export_onnx(subject, path, arguments.opset, packed, arguments.precision)
    if not arguments.json:
        print("\n".join(told(written, subject)))
    rows = _compared(subject, written, arguments) if arguments.check else []
    if arguments.json:
        print_json(_as_data(written, rows))
    elif rows:
        _print_table(subject, rows)
    return _verdict(rows, arguments.agreement)


def _built(source: Path, arguments: argparse.Namespace) -> Subject:
    from vit_ptq_bench.bench.deployment.exporting import Subject
    from vit_ptq_bench.bench.deployment.saved import rebuilt, remarks, stated_spec
    from vit_ptq_bench.bench.planning import registry
    from vit_ptq_bench.bench.planning.settings import resolve_task
    from vit_ptq_bench.methods.quantization.storage import read_saved

    saved = read_saved(source)
    spec = stated_spec(saved)
    task = registry.make_task(spec.task.name, resolve_task(spec.task.name, vars(arguments)))
    loaded, quantized = rebuilt(saved, spec, task, arguments.model)
    if not arguments.check:
        for note in remarks(saved, task):
            _say(f"note: {note}")
    return Subject(spec, task, loaded, quantized, arguments.size)


def _compared(subject: Subject, written: Written, arguments: argparse.Namespace) -> list[Row]:
    """The table's rows; full precision is in it where its weights are to be had."""
    from vit_ptq_bench.bench.deployment.comparison import Comparison
    from vit_ptq_bench.errors import UserError

    full: LoadedModel | None = None
    calibration: list[Tensor] | None = None
    images, draw = subject.spec.calibration.images, subject.spec.calibration.draw
    try:
        # A program only where the user named it.
        full = subject.task.load_model(subject.loaded.name)
        if images:
            calibration = subject.task.calibration_batches(full, images, draw)
    except UserError as error:
        if full is None and arguments.checkpoint is not None:
            raise  # the user named weights that do not serve
        missing = "full precision and " if full is None else ""
        _say(
            f"note: without {missing}static quantization, for which something is not here: {error}"
        )
    comparison = Comparison(subject, written, arguments.threads, _say)
    return comparison.rows(arguments.openvino, full, calibration)


def _as_data(written: Written, rows: list[Row]) -> dict[str, Any]:
    from vit_ptq_bench.bench.deployment.exporting import table_of

    return {
        "file": str(written.path),
        "bytes": written.size,
        "opset": written.opset,
        "sites": table_of(written),
        "comparison": [dict(vars(row)) for row in rows],
    }


def _print_table(subject: Subject, rows: list[Row]) -> None:
    from tabulate import tabulate

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    print(
        f"\n{subject.spec.model.name}, {rows[0].images} images, one at a time for the milliseconds\n"
    )
    print(
        tabulate(
            [
                [
                    row.title,
                    cell(row.metric, ".2f"),
                    cell(row.alike, ".1f"),
                    cell(row.size, ".2f"),
                    cell(row.milliseconds, ".1f"),
                ]
                for row in rows
            ],
            headers=["", subject.task.metrics[0], "alike %", "MB", "ms/image"],
            disable_numparse=True,
            colalign=("left", *["right"] * 4),
        )
    )


def _verdict(rows: list[Row], agreement: float | None) -> int:
    """0, unless a deployed file says something else than the simulated model on too many images."""
    from vit_ptq_bench.bench.deployment.comparison import complaints

    found = complaints(rows, agreement) if rows else []
    for line in found:
        _say(line)
    return DISAGREES if found else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
