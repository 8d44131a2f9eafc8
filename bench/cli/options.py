"""Options that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

RESULTS = Path("results")


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """``--plugin``."""
    parser.add_argument(
        "--plugin",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="Python file that registers methods or tasks; may be repeated",
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """``--results``."""
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help="folder with the records of a sweep (default: %(default)s)",
    )


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Where data and weights are, and how much of the data to use."""
    group = parser.add_argument_group(
        "data and weights",
        "also from a config file ([tasks.<task>] in bench.toml) or the environment "
        "(BENCH_<TASK>_<OPTION>, like BENCH_IMAGENET_DATA)",
    )
    group.add_argument("--data-dir", metavar="DIR", help="folder of the data set")
    group.add_argument(
        "--val-labels",
        metavar="FILE",
        help="ground truth of flat validation images, where folders do not tell it",
    )
    group.add_argument("--checkpoint", metavar="FILE", help="weights instead of the model's own")
    group.add_argument("--limit", metavar="N", type=int, help="evaluate on N images only")
    group.add_argument("--batch-size", metavar="N", type=int, help="images per forward pass")
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="config file (default: bench.toml in the current folder, if there)",
    )


def comma_list(text: str) -> list[str]:
    """``a,b`` as a list of names; what every repeatable option accepts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number_list(text: str) -> list[int]:
    """``0,1`` as a list of numbers."""
    return [int(part) for part in comma_list(text)]


number_list.__name__ = "number"  # argparse prints it: "invalid number value"
