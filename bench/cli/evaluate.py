"""`bench evaluate`: evaluate a quantized model that was saved."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_plugin, add_task_options

if TYPE_CHECKING:
    from vit_ptq_bench.bench.records.spec import RunSpec
    from vit_ptq_bench.methods.quantization.storage import SavedModel
    from vit_ptq_bench.tasks import Evaluation, Task


ROUNDED = 5e-4
"""Cards have four decimals."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "evaluate",
        help="evaluate a saved quantized model",
        description="Load a quantized model that `bench run --save-models` kept; evaluate it.",
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="safetensors file of a quantized model"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that FILE was made of, where that is a program (a config file): FILE alone is not "
        "believed which one to run",
    )
    parser.add_argument("--device", metavar="NAME", default="cpu", help="default: %(default)s")
    add_task_options(parser)
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics and return the exit status."""
    import torch

    from vit_ptq_bench.bench.deployment.saved import rebuilt, remarks, stated_spec
    from vit_ptq_bench.bench.execution.devices import check_device
    from vit_ptq_bench.bench.planning import plugins, registry
    from vit_ptq_bench.bench.planning.settings import resolve_task
    from vit_ptq_bench.methods.quantization.storage import read_saved

    check_device(arguments.device)
    plugins.load(Path(file) for file in arguments.plugin or ())
    saved = read_saved(arguments.file)
    spec = stated_spec(saved)
    task = registry.make_task(spec.task.name, resolve_task(spec.task.name, vars(arguments)))
    loaded, quantized = rebuilt(saved, spec, task, arguments.model)
    for note in (*remarks(saved, task), *loaded.notes):
        print(f"note: {note}", file=sys.stderr)
    device = torch.device(arguments.device)
    evaluation = task.evaluate(quantized.to(device), loaded, device, None)
    print(
        f"{spec.model.name} {spec.method.name} {spec.bits} {spec.protocol} (run {spec.run_id}), "
        f"{evaluation.n} images"
    )
    for name, value in evaluation.metrics.items():
        ends = evaluation.intervals.get(name)
        interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        print(f"{name} {value:.2f}{interval}")
    unlike = _unlike_card(saved, spec, task, evaluation)
    if unlike is not None:
        print(f"note: {unlike}", file=sys.stderr)
    return 0


def _unlike_card(
    saved: SavedModel, spec: RunSpec, task: Task, evaluation: Evaluation
) -> str | None:
    """What to say where the figure of the same images is another than the file's card has."""
    metric = task.metrics[0]
    figure = (saved.metadata.get("metrics") or {}).get(metric)
    same = saved.metadata.get("images") == evaluation.n and task.data_id() == spec.task.data
    if figure is None or not same or abs(figure - evaluation.metrics[metric]) < ROUNDED:
        return None
    return (
        f"the run that saved this file had {metric} {figure:.2f} on the same images: its processor or its "
        "versions were others, or its card is not its own"
    )
