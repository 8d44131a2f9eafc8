"""The command line: one module per verb.

Nothing is imported here that takes long: a verb imports torch, or the rooms that do, inside its
`run`.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

import shtab

from vit_ptq_bench.bench.cli import (
    check,
    check_method,
    compare,
    convert,
    evaluate,
    export,
    follow,
    inspect,
    leaderboard,
    list_,
    merge,
    new_method,
    published,
    recommend,
    repeat,
    retry,
    run,
    show,
    simulate,
    status,
    streams,
    tune,
    upgrade,
)
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.values import sentence, shown_path
from vit_ptq_bench.version import distribution_version

VERBS = (
    run,
    status,
    follow,
    retry,
    merge,
    simulate,
    leaderboard,
    list_,
    show,
    compare,
    recommend,
    repeat,
    inspect,
    tune,
    published,
    new_method,
    check,
    check_method,
    evaluate,
    export,
    convert,
    upgrade,
)

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: all well. 1: a run failed, or a check found a difference. 2: a user error, told without a
    traceback. 130: interrupted.
    """
    files = streams.prepare()
    status = USER_ERROR
    try:
        parsed = make_parser().parse_args(arguments)
        status = _carried_out(parsed)
    finally:  # also after the SystemExit of `--help` or of a wrong option
        lost = streams.finish(files)
    if lost is not None:
        print(f"error: the output could not be written: {lost}", file=sys.stderr)
        return status or USER_ERROR
    return status


def _carried_out(parsed: argparse.Namespace) -> int:
    """Run the verb and return its exit status; errors for the user are printed."""
    try:
        return int(parsed.function(parsed))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        problem = str(error)
    except OSError as error:  # a folder without permission, a name that no file can have
        if error.strerror is None:
            raise
        place = "" if error.filename is None else f"{shown_path(str(error.filename))}: "
        problem = f"{place}{error.strerror}"
    except SystemExit as error:  # a plug-in's: the command would end as if all were well
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{frame.filename}:{frame.lineno}: asked to end the program ({error!r})"
    print(f"error: {sentence(problem)}", file=sys.stderr)
    return USER_ERROR


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Benchmark of post-training quantization methods for vision transformers.",
    )
    parser.add_argument(
        "--version", action="version", version=f"vit-ptq-bench {distribution_version()}"
    )
    shtab.add_argument_to(
        parser, "--print-completion", help="print what completes commands in a shell, and exit"
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add(verbs)
    return parser
