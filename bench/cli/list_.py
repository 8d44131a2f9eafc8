"""`bench list`: what there is to choose from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_plugin, add_task_options
from vit_ptq_bench.bench.cli.text import print_rows
from vit_ptq_bench.errors import UserError

if TYPE_CHECKING:
    from vit_ptq_bench.methods import Method
    from vit_ptq_bench.methods.quantization.bits import Protocol

EXAMPLE_BITS = "W4A4"

CONVENTIONS = f"""
Conventions at {EXAMPLE_BITS} with default settings: where the bit table differs from the common one (weights
per output channel, activations per tensor, affine, static, 8-bit image), then what else the method says.
"""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("list", help="list methods, tasks, models or suites")
    parser.set_defaults(function=run)
    parser.add_argument("what", choices=("methods", "tasks", "models", "suites"))
    add_plugin(parser)
    add_task_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the list and return the exit status."""
    if arguments.what == "suites":
        list_suites()
        return 0
    from vit_ptq_bench.bench.planning import plugins

    plugins.load(Path(file) for file in arguments.plugin or ())
    if arguments.what == "methods":
        list_methods()
    elif arguments.what == "tasks":
        list_tasks()
    else:
        list_models(arguments)
    return 0


def list_suites() -> None:
    """Name and description of every bundled suite."""
    from vit_ptq_bench.bench.planning.suite import read_suite, suite_files

    files = suite_files()
    print_rows(
        ("suite", "description"),
        [(name, read_suite(path).description) for name, path in files.items()],
    )


def list_methods() -> None:
    """Every method with its paper, then the conventions; what could not be loaded with its error."""
    from vit_ptq_bench.bench.planning import registry
    from vit_ptq_bench.bench.planning.suite import PROTOCOLS

    methods = sorted(registry.methods().items())
    rows = [(name, str(cls.version), str(cls.fidelity), cls.paper) for name, cls in methods]
    rows += [(name, "-", "broken", why) for name, why in _reasons("method")]
    print_rows(("method", "version", "fidelity", "paper"), rows)
    print(CONVENTIONS)
    print_rows(
        ("method", "protocol", "images", "convention"),
        [
            (name, protocol, *convention(cls, protocol))
            for name, cls in methods
            for protocol in PROTOCOLS
        ],
    )


def convention(cls: type[Method], protocol: Protocol) -> tuple[str, str]:
    """Number of calibration images of a method, and its convention in words."""
    from vit_ptq_bench.bench.planning.plan import calibration_images
    from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY
    from vit_ptq_bench.bench.report.footnotes import differences
    from vit_ptq_bench.methods import MethodError
    from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table

    images = str(calibration_images(cls, protocol))
    method, bits = cls.create(), BitWidth.parse(EXAMPLE_BITS)
    try:
        table = method.bit_table(bits, protocol)
    except MethodError as error:
        return images, f"(not available: {error})"
    words = list(method.notes())
    if cls.fidelity != REFERENCE_FIDELITY:
        words.insert(0, differences(table, equal_table(bits)))
    return images, "; ".join(filter(None, words)) or "the common table"


def list_tasks() -> None:
    """Name, version and metrics of every task; what could not be loaded with its error."""
    from vit_ptq_bench.bench.planning import registry

    rows = [
        (name, str(cls.version), ", ".join(cls.metrics))
        for name, cls in sorted(registry.tasks().items())
    ]
    rows += [(name, "-", f"broken: {why}") for name, why in _reasons("task")]
    print_rows(("task", "version", "metrics"), rows)


def list_models(arguments: argparse.Namespace) -> None:
    """Every task's models; a task that cannot tell (its data are missing) says why."""
    from vit_ptq_bench.bench.planning import registry
    from vit_ptq_bench.bench.planning.settings import resolve_task

    rows: list[tuple[str, str]] = []
    for name in sorted(registry.tasks()):
        try:
            task = registry.make_task(name, resolve_task(name, vars(arguments)))
            rows += [(name, model) for model in task.model_names()]
        except UserError as error:
            rows.append((name, f"(not available: {error})"))
    print_rows(("task", "model"), rows)


def _reasons(kind: str) -> list[tuple[str, str]]:
    from vit_ptq_bench.bench.planning import registry

    failures = sorted(registry.broken(kind).items())
    return [(name, f"{broken.origin}: {broken.error}") for name, broken in failures]
