"""`bench list`: what there is to choose from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import add_json, add_plugin, add_task_options
from vit_ptq_bench.bench.cli.text import print_json, print_rows
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.errors import UserError

CONVENTIONS = """
Conventions at {bits} with default settings: where the bit table differs from the common one (weights
per output channel, activations per tensor, affine, static, 8-bit image), then what else the method says.
"""


@dataclass(frozen=True)
class Listing:
    """A table.

    Attributes:
        name: of the table, for programs.
        head: titles of the columns.
        rows: texts.
        before: what is said before it.
    """

    name: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    before: str = ""

    def to_dict(self) -> list[dict[str, str]]:
        """Return the rows as JSON-ready data."""
        return [dict(zip(self.head, row, strict=True)) for row in self.rows]


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "list",
        help="list methods, transforms, tasks, models, suites, model families or quantizer forms",
    )
    parser.set_defaults(function=run)
    parser.add_argument("what", choices=("suites", *LISTS))
    parser.add_argument(
        "--supported",
        action="store_true",
        help="of models, those whose layers a family knows; looked at once, without weights",
    )
    add_json(parser)
    add_plugin(parser)
    add_task_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the list and return the exit status.

    Raises:
        BenchError: ``--supported`` of something else than models.
    """
    if arguments.supported and arguments.what != "models":
        raise BenchError("--supported is about models: bench list models --supported")
    if arguments.what == "suites":
        listings = [list_suites()]
    else:
        from vit_ptq_bench.bench.planning import plugins

        plugins.load(Path(file) for file in arguments.plugin or ())
        listings = LISTS[arguments.what](arguments)
    if arguments.json:
        print_json({one.name: one.to_dict() for one in listings})
        return 0
    for one in listings:
        if one.before:
            print(one.before)
        print_rows(one.head, one.rows)
    return 0


def list_suites() -> Listing:
    """Name and description of every bundled suite."""
    from vit_ptq_bench.bench.planning.suite import read_suite, suite_files

    files = suite_files()
    rows = [(name, read_suite(path).description) for name, path in files.items()]
    return Listing("suites", ("suite", "description"), rows)


def list_methods(arguments: argparse.Namespace) -> list[Listing]:
    """Every method with its paper, then the conventions; what could not be loaded with its error."""
    from vit_ptq_bench.bench.planning import registry
    from vit_ptq_bench.bench.planning.suite import PROTOCOLS
    from vit_ptq_bench.bench.site.convention import EXAMPLE_BITS, convention

    methods = sorted(registry.methods().items())
    rows = [
        (name, str(cls.version), str(cls.family), str(cls.fidelity), cls.paper)
        for name, cls in methods
    ]
    rows += [(name, "-", "", "broken", why) for name, why in _reasons("method")]
    conventions = [
        (name, protocol, *convention(cls, protocol))
        for name, cls in methods
        for protocol in PROTOCOLS
    ]
    return [
        Listing("methods", ("method", "version", "family", "fidelity", "paper"), rows),
        Listing(
            "conventions",
            ("method", "protocol", "images", "convention"),
            conventions,
            before=CONVENTIONS.format(bits=EXAMPLE_BITS),
        ),
    ]


def list_tasks(arguments: argparse.Namespace) -> list[Listing]:
    """Name, version and metrics of every task; what could not be loaded with its error."""
    from vit_ptq_bench.bench.planning import registry

    rows = [
        (name, str(cls.version), ", ".join(cls.metrics))
        for name, cls in sorted(registry.tasks().items())
    ]
    rows += [(name, "-", f"broken: {why}") for name, why in _reasons("task")]
    return [Listing("tasks", ("task", "version", "metrics"), rows)]


def list_models(arguments: argparse.Namespace) -> list[Listing]:
    """Every task's models, or the supported ones; a task that cannot tell (its data are missing) says why."""
    from vit_ptq_bench.bench.planning import registry
    from vit_ptq_bench.bench.planning.answers import ask
    from vit_ptq_bench.bench.planning.architectures import architecture_problem
    from vit_ptq_bench.bench.planning.settings import resolve_task

    rows: list[tuple[str, ...]] = []
    for name in sorted(registry.tasks()):
        try:
            task = registry.make_task(name, resolve_task(name, vars(arguments)))
            models = ask(task, "model_names")
            if arguments.supported:
                models = [model for model in models if architecture_problem(task, model) is None]
            rows += [(name, model, ask(task, "model_remark", model) or "") for model in models]
        except UserError as error:
            rows.append((name, f"(not available: {error})", ""))
    return [Listing("models", ("task", "model", "remark"), rows)]


def list_families(arguments: argparse.Namespace) -> list[Listing]:
    """Every family of models; what could not be loaded with its error. Looking at families imports torch."""
    from vit_ptq_bench.methods.quantization.model.families.registry import FAMILIES

    rows = [(cls.name, cls.description) for cls in FAMILIES.in_order()]
    rows += [(name, f"broken: {error}") for name, error in sorted(FAMILIES.broken.items())]
    return [Listing("families", ("family", "models"), rows)]


def list_forms(arguments: argparse.Namespace) -> list[Listing]:
    """Every form of quantizer; what could not be loaded with its error. Looking at forms imports torch."""
    from vit_ptq_bench.methods.quantization.quantizers.registry import FORMS

    rows = [
        (name, (cls.__doc__ or "").partition("\n")[0])
        for name, cls in sorted(FORMS.module_dict.items())
    ]
    rows += [(name, f"broken: {error}") for name, error in sorted(FORMS.broken.items())]
    return [Listing("forms", ("form", "what it is"), rows)]


def list_transforms(arguments: argparse.Namespace) -> list[Listing]:
    """Every transform that a suite can put in front of a method."""
    from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS

    rows = [(name, card.description) for name, card in sorted(TRANSFORMS.items())]
    return [Listing("transforms", ("transform", "what it does"), rows)]


def list_changes(arguments: argparse.Namespace) -> list[Listing]:
    """Every change of the bit table that a suite can make for a method."""
    from vit_ptq_bench.methods.quantization.table_changes import CHANGES

    rows = [(name, change.description) for name, change in sorted(CHANGES.items())]
    return [Listing("table-changes", ("change", "what it does"), rows)]


LISTS = {
    "methods": list_methods,
    "transforms": list_transforms,
    "table-changes": list_changes,
    "tasks": list_tasks,
    "models": list_models,
    "families": list_families,
    "forms": list_forms,
}
"""What can be listed besides suites, for which plug-ins are loaded first."""


def _reasons(kind: str) -> list[tuple[str, str]]:
    from vit_ptq_bench.bench.planning import registry

    failures = sorted(registry.broken(kind).items())
    return [(name, f"{broken.origin}: {broken.error}") for name, broken in failures]
