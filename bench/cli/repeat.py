"""`bench repeat`: make recorded runs again, and hold the two against each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_options, add_results, add_task_options
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import resolved, words_source
from vit_ptq_bench.bench.planning.repeat_options import RepeatOptions
from vit_ptq_bench.bench.planning.settings import RunOptions

if TYPE_CHECKING:
    from vit_ptq_bench.bench.records.record import Record
    from vit_ptq_bench.bench.records.store import Store

HERE = ("output", "device", "workers", "timeout", "plugin", "save_models")
"""Options of `bench run` that one run has too."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "repeat",
        help="make recorded runs again and compare",
        description="Run again what a record says, with its full-precision reference, and compare; or do so "
        "with a number of records that are drawn at random.",
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="run id (or its beginning), or a record file"
    )
    add_options(parser, RepeatOptions)
    add_results(parser)
    group = parser.add_argument_group("execution")
    for name in HERE:
        add_options(group, RunOptions, only=name)
    add_task_options(parser, leave_out="limit")  # the record says it


def run(arguments: argparse.Namespace) -> int:
    """Repeat the runs; return 0 if what came out is the same."""
    options = resolved(RepeatOptions, [words_source(vars(arguments))])
    if (arguments.run is None) == (options.sample is None):
        raise BenchError("name a RUN, or say with --sample how many are drawn from the folder")
    return _one(arguments) if options.sample is None else _sample(arguments, options)


def _one(arguments: argparse.Namespace) -> int:
    from vit_ptq_bench.bench.cli.run import print_summary, say
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts
    from vit_ptq_bench.bench.execution.session import carry_out
    from vit_ptq_bench.bench.planning.repeat import differences, planned, suite_of
    from vit_ptq_bench.bench.planning.settings import resolve_suites
    from vit_ptq_bench.bench.records.store import Store, load_record

    store, record = load_record(arguments.run, arguments.results)
    words = vars(arguments) | {"overwrite": "always", "workers": "1"}
    words["output"] = arguments.output or Path("output") / f"repeat-{record.run_id}"
    options = resolve_suites([suite_of(record)], words)
    with raise_interrupts():
        session = carry_out(options, say=say)
    print_summary(session)
    again = planned([decision.run for decision in session.decisions], record)
    for sentence in differences(record.spec, again.spec):
        print(f"not the same run: {sentence}")
    made = Store(options.folder).read(again)
    if session.interrupted or made is None or not made.ok:
        return 1
    return _compared(record, store, made, Store(options.folder))


def _sample(arguments: argparse.Namespace, drawing: RepeatOptions) -> int:
    """Repeat records that are drawn; what a call before has made of them in the same folder counts."""
    from vit_ptq_bench.bench.cli.run import INTERRUPTED, print_summary
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts
    from vit_ptq_bench.bench.execution.session import carry_out
    from vit_ptq_bench.bench.planning import plugins
    from vit_ptq_bench.bench.planning.repeat import drawn, suite_of
    from vit_ptq_bench.bench.planning.settings import resolve_suites
    from vit_ptq_bench.bench.records.store import Store
    from vit_ptq_bench.bench.report.repetition import held_against, repetition_text

    store = Store(arguments.results)
    output = arguments.output or Path("output") / f"repeat-{arguments.results.resolve().name}"
    words = vars(arguments) | {"output": output}
    plugins.load(resolve_suites([], words).plugin)
    assert drawing.sample is not None
    records = drawn(store.records(), drawing.sample, drawing.sample_seed)
    print(f"{len(records)} records of {arguments.results}, again in {output}", flush=True)
    with raise_interrupts():
        session = carry_out(resolve_suites([suite_of(one) for one in records], words))
    print_summary(session)
    before = sum(not decision.due for decision in session.decisions)
    if before:
        print(f"{before} of {len(session.decisions)} runs were in {output} before")
    if session.interrupted:
        return INTERRUPTED
    repetitions = [held_against(record, store, Store(output)) for record in records]
    print(repetition_text(repetitions))
    return 0 if all(one.same for one in repetitions) else 1


def _compared(record: Record, store: Store, made: Record, own: Store) -> int:
    """Print both figures and on how many images they agree."""
    from vit_ptq_bench.bench.report.repetition import unlike_images

    if record.value is None or made.value is None:
        print(f"recorded: {record.status}; repeated: {made.value:.2f} %")
        return 1
    print(f"recorded {record.value:.2f} %, repeated {made.value:.2f} %")
    otherwise, images = unlike_images(store.outcomes(record), own.outcomes(made))
    if otherwise is None:
        print("their images cannot be compared: outcomes are missing or of other images")
    else:
        print(
            f"{otherwise} of {images} images came out otherwise"
            if otherwise
            else "the same on each image"
        )
    return 0 if record.value == made.value else 1
