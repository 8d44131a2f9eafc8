"""`bench follow`: a folder's runs in TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import add_options
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.values import printable

NAMES = ("tensorboard", "wandb", "mlflow")

DESCRIPTION = """\
Send every run of a folder to a program that collects experiments: its settings, figures, seconds and how it
ended, each run once. While sweeps are at work there, from whatever machine, it goes on, and sends how far
they are. It only reads what the sweeps write: one that fails or is stopped does not touch them."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "follow",
        help="send a folder's runs to TensorBoard, Weights & Biases or MLflow",
        description=DESCRIPTION,
    )
    parser.set_defaults(function=run)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of the sweeps")
    parser.add_argument("--to", required=True, choices=NAMES, help="the program; an extra each")
    parser.add_argument(
        "--place",
        metavar="WHERE",
        help="of tensorboard: a folder (default: FOLDER/tensorboard); of wandb: a project (default: called "
        "like FOLDER); of mlflow: a tracking URI (default: as MLflow is set up)",
    )
    parser.add_argument("--again", action="store_true", help="send also what was sent before")
    add_options(parser, RunOptions, only="dead_after")


def run(arguments: argparse.Namespace) -> int:
    """Send, and return the exit status."""
    from vit_ptq_bench.bench.cli.run import INTERRUPTED
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts
    from vit_ptq_bench.bench.following.follow import Sent, followed
    from vit_ptq_bench.bench.following.trackers import TRACKERS
    from vit_ptq_bench.bench.planning.options import resolved, words_source

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise BenchError(f"there is no folder {folder}")
    options = resolved(RunOptions, [words_source({"dead_after": arguments.dead_after})])
    with raise_interrupts():
        tracker = TRACKERS[arguments.to](folder, arguments.place)
        sent = Sent(folder, arguments.to, arguments.place, arguments.again)
        try:
            count = followed(folder, tracker, sent, options.dead_after)
        except KeyboardInterrupt:
            print("interrupted: what was sent is noted, and the same command sends the rest")
            return INTERRUPTED
        finally:
            tracker.close()
    print(printable(f"{count} runs of {folder} were sent to {arguments.to}"))
    return 0
