"""The command line: one module per verb.

Nothing is imported here that takes long: a verb imports torch, or the rooms that do, inside its
`run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vit_ptq_bench.bench.cli import (
    compare,
    convert,
    evaluate,
    leaderboard,
    list_,
    run,
    show,
    upgrade,
)
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.version import distribution_version

VERBS = (run, leaderboard, list_, show, compare, evaluate, convert, upgrade)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: all well. 1: a run failed, or a check found a difference. 2: a user error, told without a
    traceback. 130: interrupted.
    """
    parsed = make_parser().parse_args(arguments)
    try:
        return int(parsed.function(parsed))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # piped into `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Benchmark of post-training quantization methods for vision transformers.",
    )
    parser.add_argument(
        "--version", action="version", version=f"vit-ptq-bench {distribution_version()}"
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add(verbs)
    return parser
