"""`bench evaluate`: evaluate a quantized model that was saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import add_plugin, add_task_options


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
    parser.add_argument("--device", metavar="NAME", default="cpu", help="default: %(default)s")
    add_task_options(parser)
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics and return the exit status."""
    import torch

    from vit_ptq_bench.bench.execution.devices import check_device
    from vit_ptq_bench.bench.planning import plugins, registry
    from vit_ptq_bench.bench.planning.settings import resolve_task
    from vit_ptq_bench.methods.quantization.storage import load_quantized, read_metadata

    check_device(arguments.device)
    plugins.load(Path(file) for file in arguments.plugin or ())
    facts = read_metadata(arguments.file)
    task = registry.make_task(facts["task"], resolve_task(facts["task"], vars(arguments)))
    loaded = task.load_model(facts["model"])
    device = torch.device(arguments.device)
    quantized = load_quantized(arguments.file, loaded.module).to(device)
    evaluation = task.evaluate(quantized, loaded, device, None)
    print(
        f"{facts['model']} {facts['method']} {facts['bits']} {facts['protocol']} "
        f"(run {facts['run_id']}), {evaluation.n} images"
    )
    for name, value in evaluation.metrics.items():
        ends = evaluation.intervals.get(name)
        interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        print(f"{name} {value:.2f}{interval}")
    return 0
