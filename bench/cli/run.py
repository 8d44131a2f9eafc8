"""`bench run`: carry out a suite."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import add_plugin, add_task_options, comma_list, number_list
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.suite import (
    Suite,
    check_values,
    find_suite,
    read_suite,
    with_included,
)

OVERWRITE = ("never", "failed", "missing", "always")


OVERRIDES = {
    "models": "--models",
    "methods": "--methods",
    "bits": "--bits",
    "protocols": "--protocol",
    "scopes": "--scope",
    "seeds": "--seed",
    "limit": "--limit",
    "calibration_images": "--calibration-images",
}


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "run",
        help="run a suite and write its leaderboard",
        description="Run what a suite asks for and has no finished record; write the leaderboard.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("suite", metavar="SUITE", help="name of a bundled suite, or a TOML file")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and why; run nothing"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="records and leaderboard (default: output/SUITE)"
    )
    parser.add_argument(
        "--overwrite",
        choices=OVERWRITE,
        default="failed",
        help="which records to make again: none; those not ok (default); also ok ones "
        "whose outcomes file is missing; all",
    )
    _add_execution(parser)
    _add_narrowing(parser)
    add_task_options(parser)
    add_plugin(parser)


def _add_execution(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--device",
        metavar="NAME",
        type=comma_list,
        action="extend",
        help="cpu (default), cuda:0, or several: cuda:0,cuda:1",
    )
    group.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="runs at a time, which share the cores (default: one per device; of the bundled models, which "
        "compute on one thread each, one per CPU core)",
    )
    group.add_argument(
        "--timeout", metavar="SECONDS", type=float, help="stop a run that takes longer"
    )
    group.add_argument(
        "--share-gb",
        metavar="GB",
        type=float,
        help="disk space for decoded images and full-precision results that runs share while the sweep "
        "lasts, under DIR (default: 4; 0: every run computes all itself)",
    )
    group.add_argument(
        "--save-models",
        action="store_true",
        help="keep the quantized models (safetensors) under DIR/models",
    )


def _add_narrowing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "instead of what the suite says",
        "lists are separated by commas; names may be globs like 'vit_*'",
    )
    for flag in ("--methods", "--models", "--bits", "--protocol", "--scope"):
        group.add_argument(flag, metavar="LIST", type=comma_list, action="extend")
    group.add_argument("--seed", metavar="LIST", type=number_list, action="extend")
    group.add_argument("--calibration-images", metavar="N", type=int)


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``bench run`` and return the exit status."""
    _check_numbers(arguments)
    suites = [
        override(suite, arguments)
        for suite in with_included(read_suite(find_suite(arguments.suite)))
    ]
    from vit_ptq_bench.bench.planning.settings import Config

    config = Config.read(arguments.config)
    output = arguments.output or Path("output") / suites[0].name
    if not arguments.dry_run:
        from vit_ptq_bench.bench.execution.forkserver import start_method
        from vit_ptq_bench.bench.records.files import prepare

        prepare(output)
        start_method(*(suite.task for suite in suites))  # it imports torch while we do
    from vit_ptq_bench.bench.cli.session import carry_out

    return carry_out(suites, arguments, config, output)


def override(suite: Suite, arguments: argparse.Namespace) -> Suite:
    """``suite`` with what the command line says instead.

    Raises:
        BenchError: a value is out of range; the option is named.
    """
    found = {
        "models": arguments.models,
        "methods": arguments.methods,
        "bits": arguments.bits,
        "protocols": arguments.protocol,
        "scopes": arguments.scope,
        "seeds": arguments.seed,
        "limit": arguments.limit,
        "calibration_images": arguments.calibration_images,
    }
    given: dict[str, Any] = {
        key: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        for key, value in found.items()
        if value is not None and value != []
    }
    if not given:
        return suite
    changed = replace(suite, **given, overridden={key: OVERRIDES[key] for key in given})
    check_values(changed)
    return changed


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.workers is not None and arguments.workers < 1:
        raise BenchError(f"--workers must be at least 1, not {arguments.workers}")
    if arguments.timeout is not None and arguments.timeout <= 0:
        raise BenchError(f"--timeout must be more than 0 seconds, not {arguments.timeout:g}")
    if arguments.share_gb is not None and not arguments.share_gb >= 0:
        raise BenchError(f"--share-gb must be at least 0, not {arguments.share_gb:g}")
