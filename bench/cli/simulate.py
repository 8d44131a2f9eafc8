"""`bench simulate`: how long a suite would take on devices that are not there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import RESULTS, add_json, add_options
from vit_ptq_bench.bench.cli.text import hours, print_json, print_rows
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import resolved, words_source
from vit_ptq_bench.bench.planning.settings import SuiteOverrides, resolve_run
from vit_ptq_bench.bench.planning.simulate_options import SimulateOptions

if TYPE_CHECKING:
    from vit_ptq_bench.bench.records.record import Record
    from vit_ptq_bench.bench.simulation.simulation import Simulation

DESCRIPTION = """\
Schedule the runs of a suite on N devices, from what records say that methods cost, and print how long that
takes and how long devices would have nothing to do. Nothing is run, and no data are needed."""

EXPLAINED = """\
F: full-precision passes over the calibration images that calibration takes as long as; evaluation: seconds of
an image beside full precision's. Both are those of the method's records, beside the full-precision run of the
same model on the same machine; (n): of n runs, whose settings or whose method no record has, they are of the
method's other runs, or of all methods'."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "simulate",
        help="how long a suite would take on N devices",
        description=DESCRIPTION,
    )
    parser.set_defaults(function=run)
    parser.add_argument("suite", metavar="SUITE", help="name of a bundled suite, or a TOML file")
    add_options(parser.add_argument_group("the devices"), SimulateOptions)
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        action="append",
        help=f"folder with the records that say what methods cost; may be repeated (default: {RESULTS})",
    )
    group = parser.add_argument_group("instead of what the suite says")
    add_options(group, SuiteOverrides)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the simulation and return the exit status."""
    options = resolved(SimulateOptions, [words_source(vars(arguments))])
    options.speeds  # noqa: B018  refused before anything is read
    from vit_ptq_bench.bench.cli.run import say
    from vit_ptq_bench.bench.planning import plugins
    from vit_ptq_bench.bench.planning.size import silent
    from vit_ptq_bench.bench.simulation.simulation import simulated

    plugins.load(options.plugin)
    told = resolve_run(vars(arguments))
    records = _records(arguments.results or [RESULTS])
    how = silent if arguments.json else say
    found = simulated(told.suites, told.tasks, records, options, how)
    if arguments.json:
        print_json(found.to_dict())
    else:
        _print(found)
    return 0


def _records(folders: list[Path]) -> list[Record]:
    """The records of all folders.

    Raises:
        BenchError: one has none.
    """
    from vit_ptq_bench.bench.records.store import Store

    records = []
    for folder in folders:
        found = Store(folder).records()
        if not found:
            raise BenchError(f"there are no records in {folder}: name folders with --results")
        records += found
    return records


def _print(found: Simulation) -> None:
    data = found.to_dict()
    rows = [
        (name, f"{values['images_per_second']:g}", values["from"])
        for name, values in data["models"].items()
    ]
    print()
    print_rows(("model", "images/s in full precision", "from"), rows)
    print()
    methods = sorted(data["methods"].items(), key=lambda item: -item[1]["hours"])
    print_rows(
        ("method", "runs", "F", "evaluation", "hours"),
        [_row(name, values) for name, values in methods],
    )
    longest = data["longest"]
    print(
        f"\n{data['runs']} runs, {hours(data['busy_hours'])} of work; on {data['devices']} devices "
        f"{hours(data['makespan_hours'])}, {data['idle_share']:.1%} of their time idle\n"
        f"no order takes less than {hours(data['least_hours'])}; the longest run, "
        f"{longest['run']}, takes {hours(longest['hours'])}\n\n{EXPLAINED}"
    )


def _row(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    guessed = f" ({values['guessed']})" if values["guessed"] else ""
    passes = f"{values['calibration_passes']:.1f}{guessed}"
    evaluation = f"{values['evaluation']:.1f}"
    return name, str(values["runs"]), passes, evaluation, f"{values['hours']:.2f}"
